"""Low-rank projection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..operator import Operator
from ..runtime.view import BankView
from .rule import ProjectionRule


def _fake_projection(weights: Sequence[Tensor], *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    energy = weights[0].new_empty((len(weights),), dtype=torch.float64)
    return energy, torch.empty_like(energy), torch.empty_like(energy, dtype=torch.bool)


project_low_rank_ = Operator(
    "project_low_rank_(Tensor(a!)[] weights, int[] filter_dims, int[] groups, int[] ranks, Tensor?[] row_scales, "
    "bool energy_transfer, float skip_below, Tensor(b!)[] bases) "
    "-> (Tensor energy_before, Tensor energy_kept, Tensor skipped)",
    [BankView, ProjectionRule, list],
    {"torch": "reference", "any": "projection"},
    __package__,
    fake=_fake_projection,
)
