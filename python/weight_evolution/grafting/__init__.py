"""Filter grafting: networks of one structure that lend each other weights."""

from .distillation import PUBLISHED_TEMPERATURE, distillation_loss
from .filter_grafting import FilterGrafting
from .report import GraftingReport
from .ring import ExchangeError
from .rule import CRITERIA, LEVELS, Rule

__all__ = [
    "CRITERIA",
    "LEVELS",
    "PUBLISHED_TEMPERATURE",
    "ExchangeError",
    "FilterGrafting",
    "GraftingReport",
    "Rule",
    "distillation_loss",
]
