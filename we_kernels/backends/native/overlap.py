"""Overlap of filters: matrix products, for which torch's library on the CPU is faster than a kernel of our own."""

from ..reference.overlap import filter_overlap

__all__ = ["filter_overlap"]
