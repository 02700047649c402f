"""The reference in plain PyTorch, as short as its formula, on any device: what other backends are tested against."""

from torch import Tensor

from ...runtime.view import BankView
from ..rule import MatchingRule
from .crossover import crossover_
from .importance import filter_importance
from .matching import match_filters

__all__ = ["crossover_", "evolve_", "filter_importance", "match_filters"]


def evolve_(bank: BankView, crossover: str, rule: MatchingRule) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Donors, importances, thresholds and numbers of inferior filters."""
    importance = filter_importance(bank)
    donor, threshold, inferior = match_filters(importance, bank.layout.segments, rule)
    crossover_(bank, donor, crossover)
    return donor, importance, threshold, inferior
