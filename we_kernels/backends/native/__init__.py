"""The C++ extension as a backend."""

from ..reference.grafting import blend_, count_bins
from .asynchronous import asynchronous_sgd_, restore_unselected_, save_unselected_, select_filters
from .evolution import crossover_, evolve_, filter_importance, match_filters
from .extension import build_info, unavailable
from .overlap import filter_overlap

__all__ = [
    "asynchronous_sgd_",
    "blend_",
    "build_info",
    "count_bins",
    "crossover_",
    "evolve_",
    "filter_importance",
    "filter_overlap",
    "match_filters",
    "restore_unselected_",
    "save_unselected_",
    "select_filters",
    "unavailable",
]
