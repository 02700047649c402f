"""The public names of the package; ``weight_evolution`` looks them up here when one is first used."""

from we_kernels import BackendUnavailableError, NonFiniteWeightError, __version__

from .asynchronous import AsynchronousSGD, AsynchronousUpdate
from .evolution import EvolutionReport, StagedSigmoid, WeightEvolution
from .grafting import FilterGrafting, GraftingReport, distillation_loss
from .health import HealthReport, filter_health
from .low_rank import CompactReport, LowRankProjection, ProjectionReport, compact_like
from .measures import (
    DormancyReport,
    OverlapReport,
    UnitActivity,
    count_invalid_filters,
    filter_overlap,
    measure_overlap,
)
from .reactivation import ReactivationReport, UnitAdamW, UnitReactivation
from .sharding.failures import ExchangeError

__all__ = [
    "AsynchronousSGD",
    "AsynchronousUpdate",
    "BackendUnavailableError",
    "CompactReport",
    "DormancyReport",
    "EvolutionReport",
    "ExchangeError",
    "FilterGrafting",
    "GraftingReport",
    "HealthReport",
    "LowRankProjection",
    "NonFiniteWeightError",
    "OverlapReport",
    "ProjectionReport",
    "ReactivationReport",
    "StagedSigmoid",
    "UnitActivity",
    "UnitAdamW",
    "UnitReactivation",
    "WeightEvolution",
    "__version__",
    "compact_like",
    "count_invalid_filters",
    "distillation_loss",
    "filter_health",
    "filter_overlap",
    "measure_overlap",
]
