"""Unit reactivation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..operator import Operator
from .rule import DrawRule, UnitTensors

_FILES = {"torch": "reference", "native": "native", "triton": "triton"}


def _fake_units(activity: Tensor, sizes: Sequence[int], parents: Tensor, threshold: float) -> Tensor:
    return torch.empty_like(activity, dtype=torch.bool)


dormant_units = Operator(
    "dormant_units(Tensor activity, int[] sizes, Tensor parents, float threshold) -> Tensor",
    [Tensor, Sequence, Tensor, float],
    _FILES,
    __package__,
    fake=_fake_units,
)

reactivate_ = Operator(
    "reactivate_(Tensor(a!)[] tensors, Tensor units, int[] rows, int[] columns, int[] groups, int[] row_values, "
    "int[] column_values, Tensor revived, Tensor given, bool scaled, Tensor? targets, int seed, Tensor step) -> ()",
    [UnitTensors, Tensor, Tensor, DrawRule],
    _FILES,
    __package__,
)
