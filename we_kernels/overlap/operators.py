"""Overlap of filters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..operator import Operator, count_filters
from ..runtime.view import BankView


def _in_own_precision(overlap: Callable[..., Any], bank: BankView) -> Any:
    with torch.autocast(bank.device.type, enabled=False):
        return overlap(bank)


def _fake_overlap(
    weights: Sequence[Tensor], filter_dims: Sequence[int], groups: Sequence[int]
) -> tuple[Tensor, Tensor]:
    return (
        weights[0].new_empty((len(weights),), dtype=torch.float32),
        weights[0].new_empty((count_filters(weights, filter_dims),), dtype=torch.float32),
    )


filter_overlap = Operator(
    "filter_overlap(Tensor[] weights, int[] filter_dims, int[] groups) -> (Tensor mean, Tensor maximum)",
    [BankView],
    # Matrix products, for which torch's library on the CPU is faster than a kernel of our own.
    {"torch": "reference", "native": "reference", "triton": "triton"},
    __package__,
    fake=_fake_overlap,
    around=_in_own_precision,
)
