"""Kernels over many weight tensors at once: filter importance, matching, crossover, entropies, blends; each with a
reference.

Three backends compute the same: ``torch`` (the reference), ``native`` (C++/CUDA) and ``triton``. CUDA tensors go to
triton, CPU tensors to native, else to torch; `use_backend` or the environment variable WE_KERNELS_BACKEND force one.
"""

from .asynchronous import (
    asynchronous_sgd_,
    restore_unselected_,
    save_unselected_,
    select_filters,
    unselected_buffer,
)
from .backends import use_backend
from .bank import FilterBank
from .errors import BackendUnavailableError, NonFiniteWeightError
from .functions import (
    Selection,
    crossover_,
    evolve_,
    evolve_with_selection_,
    filter_importance,
    match_filters,
    select_and_match,
)
from .grafting import blend_, blend_ring_, weight_entropy, weight_l1
from .info import info
from .low_rank import LowRankBases, LowRankResult, project_low_rank_
from .overlap import FilterOverlap, filter_overlap
from .version import __version__

__all__ = [
    "BackendUnavailableError",
    "FilterBank",
    "FilterOverlap",
    "LowRankBases",
    "LowRankResult",
    "NonFiniteWeightError",
    "Selection",
    "__version__",
    "asynchronous_sgd_",
    "blend_",
    "blend_ring_",
    "crossover_",
    "evolve_",
    "evolve_with_selection_",
    "filter_importance",
    "filter_overlap",
    "info",
    "match_filters",
    "project_low_rank_",
    "restore_unselected_",
    "save_unselected_",
    "select_and_match",
    "select_filters",
    "unselected_buffer",
    "use_backend",
    "weight_entropy",
    "weight_l1",
]
