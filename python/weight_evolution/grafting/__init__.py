"""Filter grafting: networks of one structure that lend each other weights."""

from .distillation import PUBLISHED_TEMPERATURE, distillation_loss
from .filter_grafting import FilterGrafting
from .report import GraftingReport
from .rule import CRITERIA, LEVELS, Rule

__all__ = [
    "CRITERIA",
    "LEVELS",
    "PUBLISHED_TEMPERATURE",
    "FilterGrafting",
    "GraftingReport",
    "Rule",
    "distillation_loss",
]
