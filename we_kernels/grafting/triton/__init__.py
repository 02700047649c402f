"""Filter grafting on a GPU: counts of bins, blends."""

from .launches import blend_, count_bins

__all__ = ["blend_", "count_bins"]
