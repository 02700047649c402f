"""What a reactivation must know of whole tensors before it writes: parts of their sums, and drawn norms."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl

from ...runtime.triton.fields import WIDTH
from ...runtime.triton.launch import kernel
from ...runtime.triton.values import magnitude, widen
from .. import rule
from .elements import (
    CHANNELS,
    CHANNELS_LAST,
    COLUMN_START,
    COLUMN_VALUE,
    COLUMNS,
    ENTRIES,
    GROUP_ROWS,
    KERNEL,
    PLAN_WIDTH,
    ROW_START,
    ROW_VALUE,
    ROWS,
    STREAM,
    is_revived,
    number,
    offsets,
    random_bits,
    split,
)

BLOCK = 512
"""Elements that are summed at a time."""
SCAN = 1024
"""Entries of the table of units that are looked at at a time."""
PART = 16384
"""Elements of a part, unless that made more than `MOST_PARTS` of a tensor."""
MOST_PARTS = 256

MEAN_OF, LIVING, DRAWN = (tl.constexpr(kind) for kind in range(3))
"""Kinds of tiles: a part of a mean, a part of the norms of living units, norms of some units as drawn."""

SUM_TILE_FIELDS = ("kind", "tensor", "first", "size", "place")
"""``first``: of ``size`` elements of the tensor, or of ``size`` rows or columns. ``place``: where the part's sums are
kept, or where the first of the entries is in the table of units."""
SUM_TILE_WIDTH = tl.constexpr(len(SUM_TILE_FIELDS))

_DRAW, _MEAN, _MEAN_OR_ONE = tl.constexpr(rule.DRAW), tl.constexpr(rule.MEAN), tl.constexpr(rule.MEAN_OR_ONE)


@kernel
def unit_sums_kernel(
    pointers,
    layers,
    plans,
    tiles,
    unit_table,
    revived,
    step,
    seed,
    part_sums,
    part_counts,
    drawn_norms,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
    SCAN: tl.constexpr,
):
    """One program per tile; one that no revived unit needs leaves, and writes nothing.

    Sums are float64, in an order of their own; norms are sums of integers, the same in any order.
    """
    tile = tiles + tl.program_id(0).to(tl.int64) * SUM_TILE_WIDTH
    kind, tensor = tl.load(tile), tl.load(tile + 1)
    plan, layer = plans + tensor * PLAN_WIDTH, layers + tensor * WIDTH
    units = unit_table, revived
    if kind == DRAWN:
        _draw(tile, plan, units, step, seed, drawn_norms, BLOCK)
    else:
        base = tl.load(pointers + tensor).to(tl.pointer_type(DTYPE))
        place = tl.load(tile + 4).to(tl.int64) * 2
        if kind == MEAN_OF:
            _mean(tile, plan, layer, units, base, part_sums + place, part_counts + place, DTYPE, BLOCK, SCAN)
        else:
            _live(tile, plan, layer, units, base, part_sums + place, part_counts + place, DTYPE, BLOCK, SCAN)


@triton.jit
def _count(units, start, size, SCAN: tl.constexpr):
    """Of ``size`` entries from a start, how many are of units that are revived, and how many of others."""
    unit_table, revived = units
    new = tl.zeros((SCAN,), tl.int32)
    old = tl.zeros((SCAN,), tl.int32)
    at = size * 0
    while at < size:
        index = at + tl.arange(0, SCAN)
        unit = tl.load(unit_table + start + index, mask=index < size, other=-1)
        hit = tl.load(revived + unit, mask=unit >= 0, other=0) != 0
        new += hit.to(tl.int32)
        old += (unit >= 0).to(tl.int32) - hit.to(tl.int32)
        at += SCAN
    return tl.sum(new, axis=0), tl.sum(old, axis=0)


@triton.jit
def _mean(tile, plan, layer, units, base, sums, counts, DTYPE: tl.constexpr, BLOCK: tl.constexpr, SCAN: tl.constexpr):
    """Finite elements that are not written, and all finite ones."""
    unit_table, revived = units
    row_start, column_start = number(plan, ROW_START), number(plan, COLUMN_START)
    row_value, column_value = number(plan, ROW_VALUE), number(plan, COLUMN_VALUE)
    needed = row_start * 0
    if (row_value == _MEAN) | (row_value == _MEAN_OR_ONE):
        new, _ = _count(units, row_start, number(plan, ROWS), SCAN)
        needed += new
    if (column_value == _MEAN) | (column_value == _MEAN_OR_ONE):
        new, _ = _count(units, column_start, number(plan, COLUMNS), SCAN)
        needed += new
    if needed > 0:
        channels, elements, last = number(plan, CHANNELS), number(plan, KERNEL), number(plan, CHANNELS_LAST)
        group_rows = number(plan, GROUP_ROWS)
        first, size = tl.load(tile + 2), tl.load(tile + 3)
        others = tl.zeros((BLOCK,), tl.float64)
        every = tl.zeros((BLOCK,), tl.float64)
        count_others = tl.zeros((BLOCK,), tl.int32)
        count_every = tl.zeros((BLOCK,), tl.int32)
        at = size * 0
        while at < size:
            lane = tl.arange(0, BLOCK)
            inside = lane < size - at
            index = first + at + lane
            row = index // (channels * elements)
            channel, element = split(index % (channels * elements), channels, elements, last)
            x = widen(tl.load(base + offsets(layer, row, channel, element), mask=inside, other=0.0), DTYPE)
            finite = inside & (magnitude(x, DTYPE) < float("inf"))
            in_row, in_column = (
                lane < tl.where(row_start < 0, 0, size - at),
                lane < tl.where(column_start < 0, 0, size - at),
            )
            column = column_start + row // group_rows * channels + channel
            written = is_revived(unit_table, revived, row_start + row, in_row)
            written = written | is_revived(unit_table, revived, column, in_column)
            wide = tl.where(finite, x, 0.0).to(tl.float64)
            every += wide
            others += tl.where(written, 0.0, wide)
            count_every += finite.to(tl.int32)
            count_others += tl.where(written, 0, finite.to(tl.int32))
            at += BLOCK
        tl.store(sums, tl.sum(others, axis=0))
        tl.store(sums + 1, tl.sum(every, axis=0))
        tl.store(counts, tl.sum(count_others, axis=0).to(tl.int64))
        tl.store(counts + 1, tl.sum(count_every, axis=0).to(tl.int64))


@triton.jit
def _live(tile, plan, layer, units, base, sums, counts, DTYPE: tl.constexpr, BLOCK: tl.constexpr, SCAN: tl.constexpr):
    """Magnitudes of the units that are not revived; and how many of those the whole tensor has."""
    unit_table, revived = units
    of_rows = number(plan, ROW_VALUE) == _DRAW
    start = tl.where(of_rows, number(plan, ROW_START), number(plan, COLUMN_START))
    new, old = _count(units, start, tl.where(of_rows, number(plan, ROWS), number(plan, COLUMNS)), SCAN)
    if new > 0:
        channels, elements, last = number(plan, CHANNELS), number(plan, KERNEL), number(plan, CHANNELS_LAST)
        group_rows = number(plan, GROUP_ROWS)
        first, size = tl.load(tile + 2), tl.load(tile + 3)
        total = tl.zeros((BLOCK,), tl.float64)
        at = size * 0
        while at < size:
            lane = tl.arange(0, BLOCK)
            inside = lane < size - at
            index = first + at + lane
            row = index // (channels * elements)
            channel, element = split(index % (channels * elements), channels, elements, last)
            entry = tl.where(of_rows, row, row // group_rows * channels + channel)
            unit = tl.load(unit_table + start + entry, mask=inside, other=-1)
            alive = (unit >= 0) & (tl.load(revived + unit, mask=unit >= 0, other=1) == 0)
            x = tl.load(base + offsets(layer, row, channel, element), mask=alive, other=0.0)
            total += magnitude(widen(x, DTYPE), DTYPE).to(tl.float64)
            at += BLOCK
        tl.store(sums, tl.sum(total, axis=0))
        tl.store(counts, old.to(tl.int64))


@triton.jit
def _draw(tile, plan, units, step, seed, drawn_norms, BLOCK: tl.constexpr):
    """Of each revived row or column the sum of what will be drawn, as integers."""
    unit_table, revived = units
    first, size, place = tl.load(tile + 2), tl.load(tile + 3), tl.load(tile + 4)
    lane = tl.arange(0, ENTRIES)
    hits = is_revived(unit_table, revived, place + lane, lane < size)
    bits_left = tl.sum(hits.to(tl.int32) << lane, axis=0)
    if bits_left > 0:
        channels, elements, group_rows = number(plan, CHANNELS), number(plan, KERNEL), number(plan, GROUP_ROWS)
        stream = tl.load(plan + STREAM)
        of_rows = number(plan, ROW_VALUE) == _DRAW
        length = tl.where(of_rows, channels, group_rows) * elements
        entry = first
        while bits_left > 0:
            if bits_left % 2 == 1:
                total = tl.zeros((BLOCK,), tl.int64)
                at = length * 0
                left = length
                while left > 0:
                    lanes = at + tl.arange(0, BLOCK)
                    index = entry * length + lanes
                    if of_rows == 0:
                        row = entry // channels * group_rows + lanes // elements
                        index = (row * channels + entry % channels) * elements + lanes % elements
                    bits = random_bits(index, stream, step, seed)
                    total += tl.where(tl.arange(0, BLOCK) < left, tl.abs(bits - 0x800000), 0).to(tl.int64)
                    at += BLOCK
                    left -= BLOCK
                tl.store(drawn_norms + place + entry - first, tl.sum(total, axis=0))
            bits_left = bits_left // 2
            entry += 1
