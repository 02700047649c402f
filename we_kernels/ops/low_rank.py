"""Low-rank projection."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..backends import forced, low_rank, reference
from .library import define


def _project_low_rank(
    weights: Sequence[Tensor],
    filter_dims: Sequence[int],
    ranks: Sequence[int],
    row_scales: Sequence[Tensor | None],
    bases: Sequence[Tensor],
    energy_transfer: bool,
    skip_below: float,
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.no_grad():
        if forced(weights[0].device) == "torch":
            return reference.project_low_rank_(weights, filter_dims, ranks, row_scales, energy_transfer, skip_below)
        return low_rank.project_low_rank_(weights, filter_dims, ranks, row_scales, bases, energy_transfer, skip_below)


def _project_low_rank_fake(
    weights: Sequence[Tensor],
    filter_dims: Sequence[int],
    ranks: Sequence[int],
    row_scales: Sequence[Tensor | None],
    bases: Sequence[Tensor],
    energy_transfer: bool,
    skip_below: float,
) -> tuple[Tensor, Tensor, Tensor]:
    energy = weights[0].new_empty((len(weights),), dtype=torch.float64)
    return energy, torch.empty_like(energy), torch.empty_like(energy, dtype=torch.bool)


define(
    "project_low_rank_(Tensor(a!)[] weights, int[] filter_dims, int[] ranks, Tensor?[] row_scales, Tensor(b!)[] bases, "
    "bool energy_transfer, float skip_below) -> (Tensor energy_before, Tensor energy_kept, Tensor skipped)",
    _project_low_rank,
    _project_low_rank_fake,
)
