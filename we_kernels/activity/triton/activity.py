"""Sums of magnitudes of an activation's columns, part by part, then of the parts. See `geometry.Geometry`."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl

from ...runtime.triton.launch import kernel
from ...runtime.triton.values import magnitude, widen


@kernel
def activity_parts_kernel(
    activation,
    part_sums,
    columns,
    column_stride,
    positions,
    part_size,
    parts,
    size1,
    size2,
    size3,
    stride0,
    stride1,
    stride2,
    stride3,
    DTYPE: tl.constexpr,
    INNER: tl.constexpr,
    NEST: tl.constexpr,
    COLUMNS: tl.constexpr,
    POSITIONS: tl.constexpr,
):
    """One program per block of columns and part of their positions; float64 ``part_sums`` is [columns, parts].

    INNER: columns lie closer together than positions, so neighbouring threads take neighbouring columns. NEST: how many
    of the positions' dimensions count, the innermost ones.
    """
    ACC: tl.constexpr = tl.float64 if DTYPE == tl.float64 else tl.float32
    part = tl.program_id(0) % parts
    column = tl.program_id(0) // parts * COLUMNS + tl.arange(0, COLUMNS)
    column_offset = column.to(tl.int64) * column_stride
    start = part * part_size
    end = tl.minimum(start + part_size, positions)
    strides = (stride0, stride1, stride2, stride3)
    sizes = (size1, size2, size3)
    if INNER:
        found = tl.zeros((POSITIONS, COLUMNS), ACC)
        while start < end:
            position = start + tl.arange(0, POSITIONS)
            offset = _position_offsets(position, sizes, strides, NEST)[:, None] + column_offset[None, :]
            inside = (position < end)[:, None] & (column < columns)[None, :]
            found += magnitude(widen(tl.load(activation + offset, mask=inside, other=0.0), DTYPE), DTYPE)
            start += POSITIONS
        total = tl.sum(found, axis=0)
    else:
        found = tl.zeros((COLUMNS, POSITIONS), ACC)
        while start < end:
            position = start + tl.arange(0, POSITIONS)
            offset = column_offset[:, None] + _position_offsets(position, sizes, strides, NEST)[None, :]
            inside = (column < columns)[:, None] & (position < end)[None, :]
            found += magnitude(widen(tl.load(activation + offset, mask=inside, other=0.0), DTYPE), DTYPE)
            start += POSITIONS
        total = tl.sum(found, axis=1)
    tl.store(part_sums + column.to(tl.int64) * parts + part, total.to(tl.float64), mask=column < columns)


@triton.jit
def _position_offsets(position, sizes, strides, NEST: tl.constexpr):
    """int64 offsets of positions (int32)."""
    if NEST == 1:
        offset = position.to(tl.int64) * strides[3]
    else:
        offset = (position % sizes[2]).to(tl.int64) * strides[3]
        outer = position // sizes[2]
        if NEST == 2:
            offset += outer.to(tl.int64) * strides[2]
        else:
            offset += (outer % sizes[1]).to(tl.int64) * strides[2]
            outer = outer // sizes[1]
            offset += (outer % sizes[0]).to(tl.int64) * strides[1] + (outer // sizes[0]).to(tl.int64) * strides[0]
    return offset


@kernel
def activity_sums_kernel(
    part_sums, unit_sums, channels, run, times, parts, overwrite, DTYPE: tl.constexpr, BLOCK: tl.constexpr
):
    """One program per channel: adds the parts of its ``times * run`` columns in a fixed order."""
    channel = tl.program_id(0)
    items = times * run * parts
    total = tl.zeros((BLOCK,), tl.float64)
    start = items * 0
    while start < items:
        item = start + tl.arange(0, BLOCK)
        number = item // parts
        column = (number // run * channels + channel) * run + number % run
        total += tl.load(part_sums + column.to(tl.int64) * parts + item % parts, mask=item < items, other=0.0)
        start += BLOCK
    value = tl.sum(total, axis=0)
    if overwrite == 0:
        value += tl.load(unit_sums + channel).to(tl.float64)
    tl.store(unit_sums + channel, value.to(DTYPE))
