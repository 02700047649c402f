"""Filter health: what of a network does nothing, is dormant, alike or of needless rank, and what would treat it."""

from .filter_health import filter_health
from .layer import LayerHealth
from .previews import Preview
from .report import HealthReport

__all__ = ["HealthReport", "LayerHealth", "Preview", "filter_health"]
