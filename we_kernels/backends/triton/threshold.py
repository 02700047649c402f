"""The global threshold of every group, its k-th smallest importance, without sorting: by counting against pivots."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl

from .fields import LARGEST_FINITE, is_larger, sort_key
from .launch import kernel

CHUNK = 256
"""Filters of a group that one program counts."""

PIVOTS = 128
"""Members of the group that all its filters are compared with."""

WAYS = tl.constexpr(8)
"""Values between two bounds that are tried at once."""


@kernel
def threshold_kernel(
    importance,
    members,
    group_starts,
    chunks,
    rates,
    keys,
    candidates,
    larger,
    poisoned,
    finished,
    threshold,
    CHUNK: tl.constexpr,
    PIVOTS: tl.constexpr,
    LANES: tl.constexpr,
    ITEMS: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    """One program per chunk (group, first member); a group's last program to finish does the rest.

    ``threshold`` becomes NaN where one of the group's importances is not finite or negative. ``larger``,
    ``poisoned`` and ``finished`` are zero before and after.
    """
    chunk = tl.program_id(0).to(tl.int64) * 2
    group = tl.load(chunks + chunk)
    first = tl.load(chunks + chunk + 1)
    start = tl.load(group_starts + group)
    total = tl.load(group_starts + group + 1) - start
    members += start
    keys += start
    larger += group * PIVOTS

    index = first + tl.arange(0, CHUNK)
    mine = _keys(importance, members, index, total)
    tl.store(keys + index, mine, mask=index < total)
    bad = tl.sum((((mine < 0) | (mine > LARGEST_FINITE)) & (index < total)).to(tl.int32), axis=0)
    pivot = tl.arange(0, PIVOTS)
    pivots = _keys(importance, members, (pivot * total.to(tl.int64) // PIVOTS).to(tl.int32), total)
    tl.atomic_add(larger + pivot, tl.sum(is_larger(mine[:, None], pivots[None, :]), axis=0), sem="relaxed")
    if bad > 0:
        tl.atomic_add(poisoned + group, 1, sem="relaxed")

    tl.debug_barrier()  # all threads' writes come before the count of this program
    if tl.atomic_add(finished + group, 1) == tl.maximum(total - 1, 0) // CHUNK:
        above = tl.load(larger + pivot, cache_modifier=".cg")
        bad = tl.load(poisoned + group, cache_modifier=".cg")
        rest = total - 1 - _place(tl.load(rates + group), total)
        value = _search(keys, candidates + start, pivots, above, total, rest, LANES, ITEMS, CANDIDATES)
        value = tl.where(total > 0, value, 0).to(tl.float32, bitcast=True)
        tl.store(threshold + group, tl.where(bad > 0, float("nan"), value))
        tl.debug_barrier()  # all threads have read what is set back
        tl.store(larger + pivot, tl.zeros((PIVOTS,), tl.int32))
        tl.store(poisoned + group, 0)
        tl.store(finished + group, 0)


@triton.jit
def _keys(importance, members, index, total):
    """Sort keys of a group's members; -1, which is larger than none, past the end."""
    member = tl.load(members + index, mask=index < total, other=0)
    key = sort_key(tl.load(importance + member, mask=index < total, other=0.0))
    return tl.where(index < total, key, -1)


@triton.jit
def _place(rate, total):
    """k of the k-th smallest, from 0: floor(rate * total) between 0 and total - 1."""
    last = total.to(tl.float64) - 1
    place = tl.where(rate == rate, tl.floor(total.to(tl.float64) * rate), 0.0)
    return tl.where(place > 0.0, tl.where(place < last, place, last), 0.0).to(tl.int32)


@triton.jit
def _search(
    keys, candidates, pivots, above, total, rest, LANES: tl.constexpr, ITEMS: tl.constexpr, CANDIDATES: tl.constexpr
):
    """The least key that at most ``rest`` keys are larger than; ``above`` is how many are larger than each pivot."""
    # It is larger than `low` and at most `high`.
    low = tl.max(tl.where(above > rest, pivots, -1), axis=0)
    high = tl.min(tl.where(above > rest, LARGEST_FINITE, pivots), axis=0)
    above_low = tl.min(tl.where(above > rest, above, total), axis=0)

    count = total * 0
    tile = total * 0
    following = _load_tile(keys, tile, total, LANES, ITEMS)
    while tile < total:
        key = following
        tile += LANES * ITEMS
        following = _load_tile(keys, tile, total, LANES, ITEMS)
        between = ((key > low) & (key < high)).to(tl.int32)
        found = tl.sum(between, axis=1)
        place = count + (tl.cumsum(found, axis=0) - found)[:, None] + tl.cumsum(between, axis=1) - 1
        tl.store(candidates + place, key, mask=between > 0)
        count += tl.sum(found, axis=0)
    tl.debug_barrier()  # the candidates are written

    from_high = above_low - count
    low = tl.where(from_high > rest, high - 1, low)
    index = tl.arange(0, CANDIDATES)
    held = tl.load(candidates + index, mask=index < count, other=-1)
    while high - low > 1:
        step = (high - low + WAYS - 1) // WAYS
        value = tl.minimum(low + step * (1 + tl.arange(0, WAYS)), high)
        beyond = is_larger(held[:, None], value[None, :])
        tile = count * 0 + CANDIDATES
        while tile < count:
            more = tl.load(candidates + tile + index, mask=tile + index < count, other=-1)
            beyond += is_larger(more[:, None], value[None, :])
            tile += CANDIDATES
        fits = from_high + tl.sum(beyond, axis=0) <= rest
        high = tl.min(tl.where(fits, value, high), axis=0)
        low = tl.max(tl.where(fits, low, value), axis=0)
    return high


@triton.jit
def _load_tile(keys, tile, total, LANES: tl.constexpr, ITEMS: tl.constexpr):
    """[LANES, ITEMS], with consecutive keys in a column: rows are one thread's, in which sums cost little."""
    index = tile + tl.arange(0, LANES)[:, None] + LANES * tl.arange(0, ITEMS)[None, :]
    return tl.load(keys + index, mask=index < total, other=-1, cache_modifier=".cg")
