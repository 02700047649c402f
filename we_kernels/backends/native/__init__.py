"""The C++ extension as a backend: CPU tensors, and CUDA tensors for the operators in `CUDA_OPERATORS`."""

from .asynchronous import asynchronous_sgd_, restore_unselected_, save_unselected_, select_filters
from .evolution import CUDA_OPERATORS, crossover_, evolve_, filter_importance, match_filters
from .extension import build_info, unavailable
from .grafting import blend_, count_bins
from .overlap import filter_overlap

__all__ = [
    "CUDA_OPERATORS",
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
