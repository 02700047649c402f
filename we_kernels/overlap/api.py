"""`filter_overlap`: how alike the filters of a layer are."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..bank import FilterBank
from . import operators


class FilterOverlap(NamedTuple):
    """On the weights' device; reading it may wait for that device."""

    mean: Tensor
    """float32 [L]: of each layer, over its N * (N - 1) / 2 pairs of filters; 0 for a layer of fewer than two."""
    maximum: Tensor
    """float32 [F]: of each filter, over the others of its layer; 0 where there is none."""


@torch.no_grad()
def filter_overlap(bank: FilterBank) -> FilterOverlap:
    """Absolute cosine similarity of the flattened filters of each layer: mean over pairs, and each filter's maximum.

    A filter of zeros has cosine 0 with every other. A filter with an element that is not finite makes its cosines NaN,
    so the mean and all maxima of its layer (of two or more filters) are NaN. A grouped convolution's filters are
    compared as they are stored, whichever channels they see.

    float64 weights are computed in float64, all others in float32; each cosine of filters of K elements is within
    ``(4 + sqrt(K)) * 2**-23`` of the exact one (float64: after rounding to float32, ``2**-24``). The cosines are made
    tile by tile and never kept: the "torch" and "native" backends need memory for a few tiles of 256 filters, "triton"
    one float32 copy of the weights.

    Source: filter diversity as in Zhang et al., "Weight asynchronous update" (10.1007/s41095-020-0185-5); the measure
    is this package's own.

    Raises:
        ValueError: a tensor of the bank was resized, freed or moved.
    """
    view = bank.view()
    if not bank.weights:
        none = torch.empty(0, dtype=torch.float32, device="cpu")
        return FilterOverlap(none, none.clone())
    return FilterOverlap(*operators.filter_overlap(view))
