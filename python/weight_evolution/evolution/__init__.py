"""Weight evolution: inferior filters are crossed with dominant ones of their layer."""

from .method import WeightEvolution
from .options import EvolutionOptions
from .report import EvolutionReport
from .schedule import Schedule, StagedSigmoid

__all__ = ["EvolutionOptions", "EvolutionReport", "Schedule", "StagedSigmoid", "WeightEvolution"]
