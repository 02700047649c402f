"""Weight evolution: importance of filters, matching of inferior with dominant ones, crossover."""

from .api import CROSSOVERS, Selection, crossover_, evolve_, filter_importance, match_filters

__all__ = ["CROSSOVERS", "Selection", "crossover_", "evolve_", "filter_importance", "match_filters"]
