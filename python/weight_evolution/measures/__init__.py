"""What tells how many filters of a model do their part, and how alike they are."""

from .invalid_filters import count_invalid_filters
from .overlap import OverlapReport, filter_overlap, measure_overlap

__all__ = ["OverlapReport", "count_invalid_filters", "filter_overlap", "measure_overlap"]
