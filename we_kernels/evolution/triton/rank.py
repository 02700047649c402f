"""Order of filters by counting larger ones, and donors read off the order of a layer."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl

from ...runtime.triton.launch import kernel
from .keys import is_larger, load_keys

RANK_ROWS = 32
"""Filters that one program ranks."""

KEYS = 128
"""Filters that they are compared with at a time; a multiple of `RANK_ROWS`."""


@triton.jit
def ranks(importance, members, first, start, total, base, ROWS: tl.constexpr, KEYS: tl.constexpr):
    """Of ROWS filters of a layer or group, from ``first`` on: their rows, keys, and places in descending order.

    Equals are in the order of their rows.
    """
    row = first + tl.arange(0, ROWS)
    mine = load_keys(importance, members, row, start, total, base)
    own_tile = first // KEYS * KEYS
    index = tl.arange(0, KEYS)
    own = load_keys(importance, members, own_tile + index, start, total, base)
    larger = tl.zeros((ROWS, KEYS), tl.int32)
    scan = total * 0
    while scan < total:
        # Four loads are on their way at once.
        key0 = load_keys(importance, members, scan + index, start, total, base)
        key1 = load_keys(importance, members, scan + KEYS + index, start, total, base)
        key2 = load_keys(importance, members, scan + 2 * KEYS + index, start, total, base)
        key3 = load_keys(importance, members, scan + 3 * KEYS + index, start, total, base)
        larger += _come_first(key0, mine, scan, own_tile)
        if scan + KEYS < total:
            larger += _come_first(key1, mine, scan + KEYS, own_tile)
            larger += _come_first(key2, mine, scan + 2 * KEYS, own_tile)
            larger += _come_first(key3, mine, scan + 3 * KEYS, own_tile)
        scan += 4 * KEYS
    equal = (own[None, :] == mine[:, None]) & ((own_tile + index)[None, :] < row[:, None])
    return row, mine, tl.sum(larger + equal.to(tl.int32), axis=1)


@triton.jit
def _come_first(keys, mine, tile, own_tile):
    """Larger keys, and in tiles before the own one equal keys, too."""
    return is_larger((keys + (tile < own_tile).to(tl.int32))[None, :], mine[:, None])


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
            # Importances that change while they are ranked leave places of `order` unwritten.
            tl.store(donor + start + row, source, mask=(k < matches) & (row >= 0) & (row < filters))
            first += BLOCK
