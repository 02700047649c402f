"""The C++ extension as a backend."""

from ..reference.grafting import blend_, count_bins
from .evolution import crossover_, evolve_, filter_importance, match_filters
from .extension import build_info, unavailable
from .overlap import filter_overlap

__all__ = [
    "blend_",
    "build_info",
    "count_bins",
    "crossover_",
    "evolve_",
    "filter_importance",
    "filter_overlap",
    "match_filters",
    "unavailable",
]
