"""Unit reactivation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .draw import drawn_values, scales
from .rule import DRAW, GIVEN, KEEP, MEAN, ONE, ZERO, DrawRule, UnitTensors


def dormant_units(activity: Tensor, sizes: Sequence[int], parents: Tensor, threshold: float) -> Tensor:
    """bool [U]: those of at most the threshold's share of their layer's mean, and those that have a dormant parent."""
    masks = []
    for own in activity.double().split(list(sizes)):
        mean = own.mean()
        masks.append((own <= threshold * (mean + 1e-9)) & mean.isfinite())
    dormant = torch.cat(masks)
    ancestors = parents
    while bool((ancestors >= 0).any()):
        dormant |= _pick(dormant, ancestors, False)
        ancestors = _pick(parents, ancestors, -1)
    return dormant


def reactivate_(tensors: UnitTensors, revived: Tensor, given: Tensor, rule: DrawRule) -> None:
    """Means and norms are of the tensors as they were."""
    drawn = numbered = 0
    for tensor, *places, groups, row_value, column_value in zip(tensors.tensors, *tensors[2:], strict=True):
        x = tensor.view(-1, 1) if tensor.dim() == 1 else tensor
        axes = [
            _axis(tensors.units, start, value, parts, x, revived)
            for start, value, parts in zip(places, (row_value, column_value), (None, groups), strict=True)
        ]
        written = axes[0].hit | axes[1].hit
        new = x
        for axis in reversed(axes):
            if axis.value == DRAW:
                new = torch.where(axis.hit, _draw(x, axis, revived, drawn, rule).to(x.dtype), new)
            elif axis.value != KEEP:
                value = given[numbered] if axis.value == GIVEN else _constant(axis.value, x, written)
                new = torch.where(axis.hit, value.to(x.dtype), new)
        for axis in axes:
            if axis.value == ZERO:
                new = torch.where(axis.hit, 0, new)
        values = row_value, column_value
        drawn += DRAW in values
        numbered += GIVEN in values
        x.copy_(torch.where(written, new, x))


class _Axis(NamedTuple):
    """The rows of a tensor, or its columns."""

    value: int
    start: int
    units: Tensor
    """[rows or columns]"""
    place: Tensor
    """Of each element, its row or column; like the tensor."""
    hit: Tensor
    """Whether each element is to be written for its row or column, like the tensor."""


def _axis(units: Tensor, start: int, value: int, groups: int | None, x: Tensor, revived: Tensor) -> _Axis:
    rows, columns, ones = x.shape[0], x.shape[1], [1] * (x.dim() - 2)
    row, column = (torch.arange(size, device=x.device) for size in (rows, columns))
    count = rows if groups is None else groups * columns
    own = units[start : start + count].long() if start >= 0 else torch.full((count,), -1, device=x.device)
    if groups is None:
        place = row.view(-1, 1, *ones).expand_as(x)
    else:
        place = (row.view(-1, 1) // (rows // groups) * columns + column).view(rows, columns, *ones).expand_as(x)
    hit = _pick(revived, own, False)[place] if value != KEEP else torch.zeros_like(x, dtype=torch.bool)
    return _Axis(value, start, own, place, hit)


def _pick(values: Tensor, index: Tensor, otherwise: float) -> Tensor:
    """One value per index; ``otherwise`` for -1."""
    return torch.where(index >= 0, values[index.clamp(min=0).long()], otherwise)


def _constant(value: int, x: Tensor, written: Tensor) -> Tensor:
    """[]: one number for all elements; means are of the finite elements that are not written."""
    if value in (ZERO, ONE):
        return x.new_full((), float(value == ONE))
    others = x.isfinite() & ~written
    if value == MEAN:
        others = torch.where(others.any(), others, x.isfinite())
    total, count = torch.where(others, x, 0).sum(dtype=torch.float64), others.sum()
    return torch.where(count > 0, total / count.clamp(min=1), float(value != MEAN))


def _draw(x: Tensor, axis: _Axis, revived: Tensor, number: int, rule: DrawRule) -> Tensor:
    """float32, like the tensor, for its units that are revived."""
    bound = 1 / math.sqrt(x.numel() // x.shape[0])
    element = torch.arange(x.numel(), device=x.device).view(x.shape)
    fresh, magnitudes = drawn_values(element, number, bound, rule.seed, rule.step)
    # Integers, so that their sums do not depend on the order.
    drawn = torch.zeros_like(axis.units).scatter_add_(0, axis.place.flatten(), magnitudes.flatten())
    if rule.targets is not None:
        target = rule.targets[axis.start : axis.start + len(drawn)].double()
    elif rule.scaled:
        alive = (axis.units >= 0) & ~_pick(revived, axis.units, False)
        total = torch.where(alive[axis.place], x, 0).abs().sum(dtype=torch.float64)
        target = (total / alive.sum()).expand_as(drawn)  # NaN where none is alive
    else:
        return fresh
    return fresh * scales(target, drawn, bound)[axis.place]
