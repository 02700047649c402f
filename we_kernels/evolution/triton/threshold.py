"""The global threshold of a large group, its k-th smallest importance, by counting against pivots."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl

from ...runtime.triton.values import LARGEST_FINITE
from .keys import is_larger, load_keys

RANKED = 4096
"""The threshold of a group of at most as many filters is found by ranking them all."""

CHUNK = 256
"""Filters of a group that one program counts."""

PIVOTS = 128
"""Members of the group that all its filters are compared with."""

WAYS = tl.constexpr(8)
"""Values between two bounds that are tried at once."""


@triton.jit
def count_chunk(
    importance,
    members,
    chunk,
    rates,
    work,
    threshold,
    CHUNK: tl.constexpr,
    PIVOTS: tl.constexpr,
    LANES: tl.constexpr,
    ITEMS: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    """Counts a chunk's filters above every pivot; the group's last program to have done so finds the threshold.

    ``chunk`` is a row of `PROGRAM_FIELDS` after its kind; ``larger`` and ``counted`` are zero before and after.
    """
    group, first, start, total, base = chunk
    keys, candidates, larger, counted = work
    keys += start
    larger += group * PIVOTS

    index = first + tl.arange(0, CHUNK)
    mine = load_keys(importance, members, index, start, total, base)
    tl.store(keys + index, mine, mask=index < total)
    pivot = tl.arange(0, PIVOTS)
    pivots = load_keys(importance, members, (pivot * total.to(tl.int64) // PIVOTS).to(tl.int32), start, total, base)
    tl.atomic_add(larger + pivot, tl.sum(is_larger(mine[:, None], pivots[None, :]), axis=0), sem="relaxed")

    tl.debug_barrier()  # all threads' writes come before the count of this program
    if tl.atomic_add(counted + group, 1) == (total - 1) // CHUNK:
        above = tl.load(larger + pivot, cache_modifier=".cg")
        rest = place_from_top(tl.load(rates + group), total)
        value = _search(keys, candidates + start, pivots, above, total, rest, LANES, ITEMS, CANDIDATES)
        tl.store(threshold + group, value.to(tl.float32, bitcast=True))
        tl.debug_barrier()  # all threads have read what is set back
        tl.store(larger + pivot, tl.zeros((PIVOTS,), tl.int32))
        tl.store(counted + group, 0)


@triton.jit
def place_from_top(rate, total):
    """How many follow the k-th smallest of ``total``, for k, from 0, floor(rate * total) between 0 and total - 1."""
    last = total.to(tl.float64) - 1
    place = tl.where(rate == rate, tl.floor(total.to(tl.float64) * rate), 0.0)
    place = tl.where(place > 0.0, tl.where(place < last, place, last), 0.0)
    return total - 1 - place.to(tl.int32)


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
