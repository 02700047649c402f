"""Order of the filters in their layers by counting larger ones, and how many each layer gives up."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl

from .fields import any_poisoned, is_larger, sort_key
from .launch import kernel
from .starvation import count_inferior

RANK_ROWS = 32
"""Filters that one program ranks."""


@kernel
def rank_kernel(
    importance,
    segments,
    tiles,
    num_tiles,
    slots,
    slot_starts,
    num_layers,
    threshold,
    ratios,
    groups,
    limit,
    starvation,
    counts,
    order,
    finished,
    donor,
    inferior,
    first_match,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    SCAN: tl.constexpr,
    STARVES: tl.constexpr,
    LAYERS: tl.constexpr,
):
    """One program per tile (layer, first row) of ROWS filters, at least one; the last to finish does `count_inferior`.

    ``finished`` is zero before and after.
    """
    if tl.program_id(0) < num_tiles:
        _rank_tile(importance, segments, tiles, threshold, ratios, groups, counts, order, donor, ROWS, KEYS, SCAN)
    tl.debug_barrier()  # all threads' writes come before the count of this program
    if tl.atomic_add(finished, 1) == tl.num_programs(0) - 1:
        tl.store(finished, 0)
        count_inferior(
            segments,
            slots,
            slot_starts,
            num_layers,
            counts,
            ratios,
            groups,
            limit,
            threshold,
            starvation,
            inferior,
            first_match,
            STARVES,
            LAYERS,
        )


@triton.jit
def _rank_tile(
    importance,
    segments,
    tiles,
    threshold,
    ratios,
    groups,
    counts,
    order,
    donor,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    SCAN: tl.constexpr,
):
    """Writes donor = -1 for its filters; for the layer counts[layer] = (filters that global selection allows,
    locally inferior filters); and, where global selection allows any, order[start + rank] = row: descending
    importance, equals by row. Whether the starvation rule raises a count is not known yet, so the second count
    must not decide.
    """
    tile = tl.program_id(0).to(tl.int64) * 2
    layer = tl.load(tiles + tile)
    first_row = tl.load(tiles + tile + 1)
    filters = tl.load(segments + layer * 3).to(tl.int32)
    start = tl.load(segments + layer * 3 + 1)
    group = tl.load(segments + layer * 3 + 2)
    importance += start
    order += start
    row = first_row + tl.arange(0, ROWS)
    tl.store(donor + start + row, tl.full((ROWS,), -1, tl.int32), mask=row < filters)

    limit = tl.load(threshold + group)
    ratio = tl.load(ratios + group)
    zero_is_below = tl.load(ratios + groups + group)  # 1: importance 0 counts as -1, below any threshold
    below = tl.zeros((SCAN,), tl.int32)
    at_most = tl.zeros((SCAN,), tl.int32)
    peaks = tl.zeros((SCAN,), tl.float32)
    scan = filters * 0
    while scan < filters:
        index = scan + tl.arange(0, SCAN)
        value = tl.load(importance + index, mask=index < filters, other=0.0)
        below += ((index < filters) & (tl.where(value == 0, -zero_is_below, value) < limit)).to(tl.int32)
        at_most += ((index < filters) & (value <= limit)).to(tl.int32)
        peaks = tl.where(value > peaks, value, peaks)
        scan += SCAN
    allowed = tl.where(ratio < 0, tl.sum(at_most, axis=0), tl.sum(below, axis=0))
    allowed = tl.where(any_poisoned(threshold, groups, 16), 0, allowed)

    if first_row == 0:
        low = allowed
        if (ratio >= 0) & (allowed > 0):
            bound = ratio * tl.max(peaks, axis=0)
            lows = tl.zeros((SCAN,), tl.int32)
            scan = filters * 0
            while scan < filters:
                index = scan + tl.arange(0, SCAN)
                value = tl.load(importance + index, mask=index < filters, other=0.0)
                lows += ((index < filters) & (value <= bound)).to(tl.int32)
                scan += SCAN
            low = tl.sum(lows, axis=0)
        tl.store(counts + layer * 2, allowed)
        tl.store(counts + layer * 2 + 1, low)

    if allowed > 0:
        mine = sort_key(tl.load(importance + row, mask=row < filters, other=0.0))
        larger = tl.zeros((ROWS, KEYS), tl.int32)
        # An equal key counts when it comes first: before the tile of keys that holds these rows, not after it.
        own_tile = first_row // KEYS * KEYS
        scan = filters * 0
        while scan < own_tile:
            larger += is_larger(_keys(importance, scan, filters, KEYS)[None, :], mine[:, None] - 1)
            scan += KEYS
        first = (scan + tl.arange(0, KEYS))[None, :] < row[:, None]
        larger += is_larger(_keys(importance, scan, filters, KEYS)[None, :], mine[:, None] - first.to(tl.int32))
        scan += KEYS
        while scan < filters:
            larger += is_larger(_keys(importance, scan, filters, KEYS)[None, :], mine[:, None])
            scan += KEYS
        tl.store(order + tl.sum(larger, axis=1), row, mask=row < filters)


@triton.jit
def _keys(importance, first, filters, KEYS: tl.constexpr):
    """-1, which is less than all, past the end."""
    index = first + tl.arange(0, KEYS)
    key = sort_key(tl.load(importance + index, mask=index < filters, other=0.0))
    return tl.where(index < filters, key, -1)


@kernel
def donor_kernel(segments, slots, order, inferior, donor, BLOCK: tl.constexpr):
    """One program per layer: the best of the inferior filters receives from the most dominant, and so on."""
    layer = tl.load(slots + tl.program_id(0))
    filters = tl.load(segments + layer * 3).to(tl.int32)
    start = tl.load(segments + layer * 3 + 1)
    if filters > 0:
        n_low = tl.load(inferior + layer)
        dominant = filters - n_low
        matches = tl.minimum(n_low, dominant)
        first = matches * 0
        while first < matches:
            k = first + tl.arange(0, BLOCK)
            source = tl.load(order + start + k, mask=k < matches, other=0)
            row = tl.load(order + start + dominant + k, mask=k < matches, other=0)
            tl.store(donor + start + row, source, mask=k < matches)
            first += BLOCK
