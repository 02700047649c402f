"""Weight evolution: inferior filters are crossed with dominant ones of their layer."""

from .method import WeightEvolution
from .report import EvolutionReport
from .schedule import Schedule, StagedSigmoid

__all__ = ["EvolutionReport", "Schedule", "StagedSigmoid", "WeightEvolution"]
