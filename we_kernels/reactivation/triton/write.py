"""Rows and columns of revived units: their new values, in place."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl

from ...runtime.triton.fields import WIDTH
from ...runtime.triton.launch import kernel
from ...runtime.triton.values import round_to
from .. import rule
from .elements import (
    CHANNELS,
    CHANNELS_LAST,
    COLUMN_START,
    COLUMN_VALUE,
    ENTRIES,
    GIVEN,
    GROUP_ROWS,
    KERNEL,
    LIVE_FIRST,
    LIVE_PARTS,
    MEAN_FIRST,
    MEAN_PARTS,
    PLAN_WIDTH,
    ROW_START,
    ROW_VALUE,
    STREAM,
    is_revived,
    nth_bit,
    number,
    offsets,
    random_bits,
    split,
)

BLOCK = 512
"""Elements that are written at a time."""
SPAN = 2048
"""Elements of each of a program's rows or columns."""

WRITE_TILE_FIELDS = ("tensor", "axis", "place", "first", "size", "low", "high")
"""Axis 0: rows, 1: columns; ``place`` of the first of ``size`` of them in the table of units. ``low``, ``high``: which
of a row's elements, or of a group's rows."""
WRITE_TILE_WIDTH = tl.constexpr(len(WRITE_TILE_FIELDS))

AS_DRAWN, TO_LIVING, TO_TARGETS = (tl.constexpr(scaling) for scaling in range(3))
"""What drawn units are scaled to."""

_ZERO, _ONE, _DRAW = tl.constexpr(rule.ZERO), tl.constexpr(rule.ONE), tl.constexpr(rule.DRAW)
_MEAN, _MEAN_OR_ONE, _GIVEN = tl.constexpr(rule.MEAN), tl.constexpr(rule.MEAN_OR_ONE), tl.constexpr(rule.GIVEN)


@kernel
def write_units_kernel(
    pointers,
    layers,
    plans,
    bounds,
    tiles,
    unit_table,
    revived,
    given,
    targets,
    scaling,
    step,
    seed,
    part_sums,
    part_counts,
    drawn_norms,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
):
    """One program per tile of `ENTRIES` rows or columns, which leaves if none of them is revived."""
    tile = tiles + tl.program_id(0).to(tl.int64) * WRITE_TILE_WIDTH
    tensor, axis, place, first = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2), tl.load(tile + 3)
    size, low, high = tl.load(tile + 4), tl.load(tile + 5), tl.load(tile + 6)
    lane = tl.arange(0, ENTRIES)
    hits = is_revived(unit_table, revived, place + lane, lane < size).to(tl.int32)
    found = tl.sum(hits, axis=0)
    if found > 0:
        bits = tl.sum(hits << lane, axis=0)
        plan, layer = plans + tensor * PLAN_WIDTH, layers + tensor * WIDTH
        base = tl.load(pointers + tensor).to(tl.pointer_type(DTYPE))
        row_start, column_start = number(plan, ROW_START), number(plan, COLUMN_START)
        row_value, column_value = number(plan, ROW_VALUE), number(plan, COLUMN_VALUE)
        rows_first = (row_start >= 0) & ((row_value == _ZERO) | (column_value != _ZERO))
        columns_first = (column_start >= 0) & (column_value == _ZERO) & (row_value != _ZERO)
        value = tl.where(axis == 0, row_value, column_value)
        yields = tl.where(axis == 0, columns_first, rows_first)
        channels, elements, last = number(plan, CHANNELS), number(plan, KERNEL), number(plan, CHANNELS_LAST)
        group_rows, stream = number(plan, GROUP_ROWS), tl.load(plan + STREAM)
        bound = tl.load(bounds + tensor)
        target = bound * 0.0
        constant = _constant(value, target, plan, given, part_sums, part_counts, PARTS)
        if (value == _DRAW) & (scaling == TO_LIVING):
            target = _living_norm(plan, part_sums, part_counts, PARTS)
        span = tl.where(axis == 0, high - low, found * elements)
        left = tl.where(axis == 0, found, high - low) * span
        at = left * 0
        while left > 0:
            lanes = tl.arange(0, BLOCK)
            inside = lanes < left
            outer, inner = (at + lanes) // span, (at + lanes) % span
            if axis == 0:
                entry = first + nth_bit(bits, outer)
                row = entry
                channel, element = split(low + inner, channels, elements, last)
                other = column_start + row // group_rows * channels + channel
            else:
                nth, element = split(inner, found, elements, last)
                entry = first + nth_bit(bits, nth)
                row = entry // channels * group_rows + low + outer
                channel = entry % channels
                other = row_start + row
            if yields:
                hidden = is_revived(unit_table, revived, other, inside)
                inside = inside & (hidden == 0)
            if value == _DRAW:
                drawn = random_bits((row * channels + channel) * elements + element, stream, step, seed)
                fresh = (drawn.to(tl.float32) * (2.0**-23) - 1.0) * bound.to(tl.float32)
                if scaling != AS_DRAWN:
                    entry_place = place + entry - first
                    wanted = tl.zeros((BLOCK,), tl.float64) + target
                    if scaling == TO_TARGETS:
                        wanted = tl.load(targets + entry_place, mask=inside, other=0.0).to(tl.float64)
                    norm = tl.load(drawn_norms + entry_place, mask=inside, other=0)
                    scales = (wanted > 0) & (wanted < float("inf")) & (norm > 0)
                    factor = wanted / (norm.to(tl.float64) * (bound * (2.0**-23)))
                    fresh = fresh * tl.where(scales, factor, 1.0).to(tl.float32)
                new = round_to(fresh, DTYPE)
            else:
                new = _from_double(tl.zeros((BLOCK,), tl.float64) + constant, DTYPE)
            tl.store(base + offsets(layer, row, channel, element), new, mask=inside)
            at += BLOCK
            left -= BLOCK


@triton.jit
def _constant(value, constant, plan, given, part_sums, part_counts, PARTS: tl.constexpr):
    """float64: what is written to all of a tensor's rows or columns; from 0, which stays where it is drawn."""
    if value == _ONE:
        constant += 1.0
    if value == _GIVEN:
        constant += tl.load(given + tl.load(plan + GIVEN)).to(tl.float64)
    if (value == _MEAN) | (value == _MEAN_OR_ONE):
        part = tl.load(plan + MEAN_FIRST) + tl.arange(0, PARTS)
        there = tl.arange(0, PARTS) < number(plan, MEAN_PARTS)
        count = tl.sum(tl.load(part_counts + part * 2, mask=there, other=0), axis=0)
        total = tl.sum(tl.load(part_sums + part * 2, mask=there, other=0.0), axis=0)
        if (count == 0) & (value == _MEAN):
            count = tl.sum(tl.load(part_counts + part * 2 + 1, mask=there, other=0), axis=0)
            total = tl.sum(tl.load(part_sums + part * 2 + 1, mask=there, other=0.0), axis=0)
        if count > 0:
            constant = total / count.to(tl.float64)
        elif value == _MEAN_OR_ONE:
            constant += 1.0
    return constant


@triton.jit
def _living_norm(plan, part_sums, part_counts, PARTS: tl.constexpr):
    """The mean norm of a tensor's units that are not revived; 0 without any."""
    first = tl.load(plan + LIVE_FIRST)
    there = tl.arange(0, PARTS) < number(plan, LIVE_PARTS)
    total = tl.sum(tl.load(part_sums + (first + tl.arange(0, PARTS)) * 2, mask=there, other=0.0), axis=0)
    count = tl.load(part_counts + first * 2)
    return total / tl.maximum(count, 1).to(tl.float64)


@triton.jit
def _from_double(x, DTYPE: tl.constexpr):
    if DTYPE == tl.float64:
        rounded = x
    else:
        rounded = round_to(x.to(tl.float32), DTYPE)
    return rounded
