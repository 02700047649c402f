"""Training methods that bring inferior convolution filters back to life instead of pruning them.

`WeightEvolution` is one line in a training loop; the kernels behind it are the package ``we_kernels``.
"""

from we_kernels import BackendUnavailableError, NonFiniteWeightError, __version__

from .evolution import WeightEvolution
from .low_rank import LowRankProjection, compact_like
from .report import EvolutionReport
from .schedule import StagedSigmoid

__all__ = [
    "BackendUnavailableError",
    "EvolutionReport",
    "LowRankProjection",
    "NonFiniteWeightError",
    "StagedSigmoid",
    "WeightEvolution",
    "__version__",
    "compact_like",
]
