"""How many filters every layer gives up: the starvation counter, and where each layer's matches start."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl

from .fields import any_poisoned

OFFSET = tl.constexpr(2**32)
"""Makes every counter's origin positive."""
SLOT = tl.constexpr(2**34)
"""Larger than every origin: the slot's unit in a number that holds both."""


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def count_inferior(
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
    STARVES: tl.constexpr,
    TILE: tl.constexpr,
):
    """By one program, TILE layers at a time, which lie group by group (``slots``).

    The counter of a group is sequential, but only in its definition: between two layers that reset it, it counts
    the starving layers and fires at every multiple of ``limit``, so prefix sums give it for all layers at once.
    Writes inferior[layer]; first_match[slot], the number of matched filters in the slots before; the counters; and
    makes every threshold NaN if one is.
    """
    every = limit.to(tl.int64)
    starved = num_layers * 0  # starving layers so far, of all groups
    latest = every * 0 - 1
    matched = num_layers * 0
    tl.store(first_match, 0)
    tile = num_layers * 0
    while tile < num_layers:
        slot = tile + tl.arange(0, TILE)
        inside = slot < num_layers
        layer = tl.load(slots + slot, mask=inside, other=0)
        filters = tl.load(segments + layer * 3, mask=inside, other=0).to(tl.int32)
        group = tl.load(segments + layer * 3 + 2, mask=inside, other=0)
        present = inside & (filters > 0)
        allowed = tl.load(counts + layer * 2, mask=present, other=0, cache_modifier=".cg")
        low = tl.load(counts + layer * 2 + 1, mask=present, other=0, cache_modifier=".cg")
        ratio = tl.load(ratios + group, mask=inside, other=0.0)
        if STARVES:
            begins = inside & (slot == tl.load(slot_starts + group, mask=inside, other=-1))
            ends = inside & (slot + 1 == tl.load(slot_starts + group + 1, mask=inside, other=-1))
            counter = tl.load(starvation + group, mask=inside, other=0).to(tl.int64)
            carried = tl.minimum(counter, every - 1)
            ruled = (tl.where(ratio >= 0, allowed, 0) > 0) & inside
            starving = (ruled & (low == 0)).to(tl.int32)
            so_far = starved + tl.cumsum(starving, axis=0)
            # The value of `so_far` at which the counter was 0, packed with where it was last reset or first read.
            resets = ruled & (low > 0)
            origin = so_far.to(tl.int64) - tl.where(resets, 0, starving + carried)
            event = (slot.to(tl.int64) * 2 + resets.to(tl.int64)) * SLOT + origin + OFFSET
            events = tl.associative_scan(tl.where(begins | resets, event, -1), 0, _larger)
            events = tl.maximum(events, latest)
            count = so_far - (events % SLOT - OFFSET)
            beyond = count >= every
            remainder = tl.where(beyond, count, 0).to(tl.uint32) % limit.to(tl.uint32)
            fires = (starving > 0) & beyond & (remainder == 0)
            low = tl.where(fires, 1, low)
            changed = (events // SLOT % 2 == 1) | (count > carried)
            final = tl.where(beyond, remainder.to(tl.int64), count)
            tl.store(starvation + group, final.to(tl.int32), mask=ends & changed)
            starved += tl.sum(starving, axis=0)
            latest = tl.max(events, axis=0)
        n_low = tl.where(ratio < 0, low, tl.minimum(allowed, low))
        tl.store(inferior + layer, n_low, mask=inside)
        matches = tl.minimum(n_low, filters - n_low)
        tl.store(first_match + 1 + slot, matched + tl.cumsum(matches, axis=0), mask=inside)
        matched += tl.sum(matches, axis=0)
        tile += TILE

    if any_poisoned(threshold, groups, 16):
        group = limit * 0
        while group < groups:
            tl.store(threshold + group, float("nan"))
            group += 1
