"""What tells how many filters and units of a model do their part, and how alike filters are."""

from .dormancy_report import DormancyReport
from .invalid_filters import count_invalid_filters
from .overlap import OverlapReport, filter_overlap, measure_overlap
from .unit_activity import UnitActivity

__all__ = [
    "DormancyReport",
    "OverlapReport",
    "UnitActivity",
    "count_invalid_filters",
    "filter_overlap",
    "measure_overlap",
]
