"""The C++ extension as a backend."""

from .evolution import crossover_, evolve_, filter_importance, match_filters
from .extension import build_info, unavailable

__all__ = ["build_info", "crossover_", "evolve_", "filter_importance", "match_filters", "unavailable"]
