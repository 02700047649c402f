"""`Geometry`: how the elements of an activation are walked through, so that memory is read in order."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

POSITION_DIMS = 4
"""Dimensions beside the channels, after merging."""

NARROW = 64
"""Runs of fewer elements, or fewer channels side by side, are taken together as columns."""
MOST_COLUMNS = 512
"""Of channels that are taken together from several positions."""
FEW_POSITIONS = 8
"""So few rows are not worth taking runs as columns: each column is added to its channel at the end."""


class Geometry(NamedTuple):
    """Columns of equal length; strides are in elements. csrc/cpu/simd.h has the same.

    Column i belongs to channel ``i // run % channels``. Plain geometries have a column for each channel and run 1.
    """

    columns: int
    column_stride: int
    run: int
    channels: int
    sizes: tuple[int, ...]
    """Of the positions of each column, `POSITION_DIMS` of them, outermost first."""
    strides: tuple[int, ...]

    @property
    def positions(self) -> int:
        """Elements of each column."""
        return prod(self.sizes)

    @property
    def columns_inner(self) -> bool:
        """Whether columns lie closer together than positions."""
        return self.columns > 1 and not 0 < self.strides[-1] <= self.column_stride


def with_geometry(activation: Tensor, dim: int) -> tuple[Tensor, Geometry]:
    """The geometry of an activation that is not empty.

    More than four dimensions with gaps between all of them need a contiguous copy, which is then returned.
    """
    found = _geometry_of(activation.shape, activation.stride(), dim)
    if found is None:
        activation = activation.contiguous()
        found = _geometry_of(activation.shape, activation.stride(), dim)
        assert found is not None
    return activation, found


@lru_cache(maxsize=1024)
def _geometry_of(shape: torch.Size, stride: tuple[int, ...], dim: int) -> Geometry | None:
    channels, channel_stride = shape[dim], stride[dim] if shape[dim] > 1 else 0
    others = [(size, step) for i, (size, step) in enumerate(zip(shape, stride, strict=True)) if i != dim and size > 1]
    rest = _merged(others)
    columns, run = channels, 1
    if rest and channels > 1:
        size, step = rest[-1]
        if step == 1 and channel_stride == size < NARROW and prod(n for n, _ in rest[:-1]) >= FEW_POSITIONS:
            columns, run, channel_stride = channels * size, size, 1
            rest.pop()
        elif channel_stride == 1 and step == channels < NARROW:
            times = next(m for m in range(MOST_COLUMNS // channels, 0, -1) if size % m == 0)
            columns = channels * times
            rest[-1:] = [(size // times, step * times)] if size > times else []
    if len(rest) > POSITION_DIMS:
        return None
    sizes, strides = zip(*[(1, 0)] * (POSITION_DIMS - len(rest)), *rest, strict=True)
    return Geometry(columns, channel_stride, run, channels, sizes, strides)


def _merged(dims: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """(size, stride) pairs of the same addresses, as few as possible, those that lie closest together last."""
    merged: list[tuple[int, int]] = []
    for size, step in sorted(dims, key=lambda pair: (pair[1] > 0, -pair[1])):  # expanded ones are outermost
        if merged and merged[-1][1] == size * step:
            merged[-1] = (merged[-1][0] * size, step)
        else:
            merged.append((size, step))
    return merged
