"""Dormant units and fresh weights, in the extension."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..runtime.native import module
from .rule import DrawRule, UnitTensors


def dormant_units(activity: Tensor, sizes: Sequence[int], parents: Tensor, threshold: float) -> Tensor:
    """bool [U]."""
    dormant = torch.empty(activity.numel(), dtype=torch.bool, device="cpu")
    module.dormant_units(
        activity.data_ptr(),
        activity.numel(),
        sizes,
        parents.data_ptr(),
        parents.numel(),
        threshold,
        dormant.data_ptr(),
    )
    return dormant


def reactivate_(tensors: UnitTensors, revived: Tensor, given: Tensor, rule: DrawRule) -> None:
    """Reads only tensors that need a mean or a norm, writes only rows and columns of units that are revived."""
    module.reactivate(
        list(tensors.addresses),
        tensors.layout.table.data_ptr(),
        tensors.units.data_ptr(),
        tensors.units.numel(),
        tensors.rows,
        tensors.columns,
        tensors.groups,
        tensors.row_values,
        tensors.column_values,
        revived.data_ptr(),
        revived.numel(),
        given.data_ptr(),
        given.numel(),
        rule.scaled,
        0 if rule.targets is None else rule.targets.data_ptr(),
        rule.seed,
        rule.step.data_ptr(),
        torch.get_num_threads(),
    )
