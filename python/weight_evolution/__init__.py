"""Training methods that bring inferior convolution filters back to life instead of pruning them.

`WeightEvolution` is one line in a training loop; the kernels behind it are the package ``we_kernels``.
"""

from we_kernels import BackendUnavailableError, NonFiniteWeightError, __version__

from .asynchronous import AsynchronousSGD, AsynchronousUpdate
from .distillation import distillation_loss
from .evolution import WeightEvolution
from .grafting import ExchangeError, FilterGrafting, GraftingReport
from .invalid_filters import count_invalid_filters
from .low_rank import LowRankProjection, compact_like
from .overlap import OverlapReport, filter_overlap, measure_overlap
from .report import EvolutionReport
from .schedule import StagedSigmoid

__all__ = [
    "AsynchronousSGD",
    "AsynchronousUpdate",
    "BackendUnavailableError",
    "EvolutionReport",
    "ExchangeError",
    "FilterGrafting",
    "GraftingReport",
    "LowRankProjection",
    "NonFiniteWeightError",
    "OverlapReport",
    "StagedSigmoid",
    "WeightEvolution",
    "__version__",
    "compact_like",
    "count_invalid_filters",
    "distillation_loss",
    "filter_overlap",
    "measure_overlap",
]
