"""Overlap of filters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import backends
from ..layout import layout_of
from .library import count_filters, define


def _filter_overlap(weights: Sequence[Tensor], filter_dims: Sequence[int]) -> tuple[Tensor, Tensor]:
    layout, device = layout_of(weights, filter_dims, [0] * len(weights)), weights[0].device
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        found: tuple[Tensor, Tensor] = backends.choose(device, "filter_overlap").filter_overlap(
            weights, filter_dims, layout
        )
    return found


def _filter_overlap_fake(weights: Sequence[Tensor], filter_dims: Sequence[int]) -> tuple[Tensor, Tensor]:
    return (
        weights[0].new_empty((len(weights),), dtype=torch.float32),
        weights[0].new_empty((count_filters(weights, filter_dims),), dtype=torch.float32),
    )


define(
    "filter_overlap(Tensor[] weights, int[] filter_dims) -> (Tensor mean, Tensor maximum)",
    _filter_overlap,
    _filter_overlap_fake,
)
