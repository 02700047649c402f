"""The global threshold of every group: its k-th smallest importance, found bit by bit without sorting."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl

from .fields import LARGEST_FINITE, sort_key
from .launch import kernel

ABOVE_ALL = tl.constexpr(0x7FFFFFFF)
"""Key of lanes past the end: no candidate is larger."""


@kernel
def threshold_kernel(importance, members, group_starts, rates, threshold, TILE: tl.constexpr, SINGLE: tl.constexpr):
    """One program per group. ``threshold`` becomes NaN where one of the group's importances is not finite or negative.

    ``SINGLE``: the group fits one tile, so its keys are read once and stay in registers.
    """
    group = tl.program_id(0)
    start = tl.load(group_starts + group)
    total = tl.load(group_starts + group + 1) - start
    members += start
    keys = _keys(importance, members, 0, total, TILE)
    poison = _poison(keys, total, 0, TILE)
    if not SINGLE:
        tile = total * 0 + TILE
        while tile < total:
            poison += _poison(_keys(importance, members, tile, total, TILE), total, tile, TILE)
            tile += TILE

    rate = tl.load(rates + group)
    last = total.to(tl.float64) - 1
    place = tl.where(rate == rate, tl.floor(total.to(tl.float64) * rate), 0.0)
    k = tl.where(place > 0.0, tl.where(place < last, place, last), 0.0).to(tl.int32)

    # The largest value that at most k keys lie below is the k-th key (0-based).
    found = k * 0
    bit = found + 0x40000000
    while bit > 0:
        candidate = found + bit
        if SINGLE:
            below = tl.sum((keys < candidate).to(tl.int32), axis=0)
        else:
            count = tl.zeros((TILE,), tl.int32)
            tile = total * 0
            while tile < total:
                count += (_keys(importance, members, tile, total, TILE) < candidate).to(tl.int32)
                tile += TILE
            below = tl.sum(count, axis=0)
        found = tl.where(below <= k, candidate, found)
        bit = bit // 2
    value = tl.where(total > 0, found, 0).to(tl.float32, bitcast=True)
    tl.store(threshold + group, tl.where(poison > 0, float("nan"), value))


@triton.jit
def _keys(importance, members, tile, total, TILE: tl.constexpr):
    index = tile + tl.arange(0, TILE)
    inside = index < total
    member = tl.load(members + index, mask=inside, other=0)
    return tl.where(inside, sort_key(tl.load(importance + member, mask=inside, other=0.0)), ABOVE_ALL)


@triton.jit
def _poison(keys, total, tile, TILE: tl.constexpr):
    bad = (keys < 0) | (keys > LARGEST_FINITE)
    return tl.sum((bad & (tile + tl.arange(0, TILE) < total)).to(tl.int32), axis=0)
