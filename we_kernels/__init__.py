"""Kernels over many weight tensors at once: filter importance, matching, crossover, entropies, blends; each with a
reference. `channel_activity` is about activations.

Three backends compute the same: ``torch`` (the reference), ``native`` (C++/CUDA) and ``triton``. CUDA tensors go to
triton, or where that is missing to native, CPU tensors to native; what neither can do, to torch. `use_backend` or the
environment variable WE_KERNELS_BACKEND force one.
"""

from .activity import add_channel_activity_, channel_activity
from .adamw import unit_adamw_
from .asynchronous import (
    asynchronous_sgd_,
    restore_unselected_,
    save_unselected_,
    select_filters,
    unselected_buffer,
)
from .bank import FilterBank
from .errors import BackendUnavailableError, NonFiniteWeightError
from .evolution import CROSSOVERS, Selection, crossover_, evolve_, filter_importance, match_filters
from .grafting import MAX_BINS, blend_, blend_ring_, weight_entropy, weight_l1
from .info import info
from .low_rank import LowRankBases, LowRankResult, project_low_rank_
from .operator import backend_of
from .overlap import FilterOverlap, filter_overlap
from .reactivation import UnitPlan, UnitTensor, dormant_units, reactivate_
from .runtime.backends import use_backend
from .runtime.layout import DTYPES, MAX_DIMS
from .runtime.transfer import Readback, is_capturing, send_, to_device
from .version import __version__

__all__ = [
    "CROSSOVERS",
    "DTYPES",
    "MAX_BINS",
    "MAX_DIMS",
    "BackendUnavailableError",
    "FilterBank",
    "FilterOverlap",
    "LowRankBases",
    "LowRankResult",
    "NonFiniteWeightError",
    "Readback",
    "Selection",
    "UnitPlan",
    "UnitTensor",
    "__version__",
    "add_channel_activity_",
    "asynchronous_sgd_",
    "backend_of",
    "blend_",
    "blend_ring_",
    "channel_activity",
    "crossover_",
    "dormant_units",
    "evolve_",
    "filter_importance",
    "filter_overlap",
    "info",
    "is_capturing",
    "match_filters",
    "project_low_rank_",
    "reactivate_",
    "restore_unselected_",
    "save_unselected_",
    "select_filters",
    "send_",
    "to_device",
    "unit_adamw_",
    "unselected_buffer",
    "use_backend",
    "weight_entropy",
    "weight_l1",
]
