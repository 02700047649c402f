"""Overlap of filters on a GPU."""

from .launches import filter_overlap

__all__ = ["filter_overlap"]
