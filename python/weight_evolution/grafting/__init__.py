"""Filter grafting: networks of one structure that lend each other weights."""

from .distillation import distillation_loss
from .filter_grafting import FilterGrafting
from .report import GraftingReport
from .ring import ExchangeError
from .rule import CRITERIA, LEVELS

__all__ = ["CRITERIA", "LEVELS", "ExchangeError", "FilterGrafting", "GraftingReport", "distillation_loss"]
