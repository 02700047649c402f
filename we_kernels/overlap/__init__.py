"""Overlap: how alike the filters of a layer are."""

from .api import FilterOverlap, filter_overlap

__all__ = ["FilterOverlap", "filter_overlap"]
