"""Weight evolution on a GPU: importance, matching, crossover, a kernel each."""

from .launches import crossover_, evolve_, filter_importance, match_filters

__all__ = ["crossover_", "evolve_", "filter_importance", "match_filters"]
