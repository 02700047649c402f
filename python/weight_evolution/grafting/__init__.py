"""Filter grafting: networks of one structure that lend each other weights."""

from .distillation import distillation_loss
from .filter_grafting import FilterGrafting
from .report import GraftingReport
from .ring import ExchangeError

__all__ = ["ExchangeError", "FilterGrafting", "GraftingReport", "distillation_loss"]
