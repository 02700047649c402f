"""How many filters every layer gives up: global and local selection, the starvation counter, where matches start."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl

from .keys import sort_key

SLOT_FIELDS = ("layer", "filters", "first_filter", "group", "begins", "ends")
"""Of the layers, group by group; ``begins``, ``ends``: 1 for the first and the last layer of a group."""
SLOT_WIDTH = tl.constexpr(8)
"""int32 of a layer, with the unused ones: one sector of memory."""

PROBES = tl.constexpr(8)
"""Places of a sorted layer that are looked at at once."""

OFFSET = tl.constexpr(2**32)
"""Makes every counter's origin positive."""
SLOT = tl.constexpr(2**34)
"""Larger than every origin: the slot's unit in a number that holds both."""


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def count_inferior(
    slot_table,
    num_layers,
    descending,
    rule,
    threshold,
    poisoned,
    starvation,
    found,
    STARVES: tl.constexpr,
    TILE: tl.constexpr,
):
    """By one program, TILE layers at a time, which lie group by group, with their keys in descending order.

    The counter of a group is sequential, but only in its definition: between two layers that reset it, it counts
    the starving layers and fires at every multiple of ``limit``, so prefix sums give it for all layers at once.
    Writes inferior[layer]; first_match[slot], the number of matched filters in the slots before; and the counters.
    Where an importance is not finite or negative, no filter is inferior, and every threshold becomes NaN.
    """
    ratios, groups, limit = rule
    inferior, first_match = found
    bad = tl.load(poisoned, cache_modifier=".cg") > 0
    every = limit.to(tl.int64)
    starved = num_layers * 0  # starving layers so far, of all groups
    latest = every * 0 - 1
    matched = num_layers * 0
    tl.store(first_match, 0)
    tile = num_layers * 0
    while tile < num_layers:
        slot = tile + tl.arange(0, TILE)
        inside = slot < num_layers
        fields = slot_table + slot * SLOT_WIDTH
        layer = tl.load(fields, mask=inside, other=0)
        filters = tl.load(fields + 1, mask=inside, other=0)
        first_filter = tl.load(fields + 2, mask=inside, other=0)
        group = tl.load(fields + 3, mask=inside, other=0)
        begins = tl.load(fields + 4, mask=inside, other=0) > 0
        ends = tl.load(fields + 5, mask=inside, other=0) > 0
        ratio = tl.load(ratios + group, mask=inside, other=0.0)
        bar = tl.load(threshold + group, mask=inside, other=0.0, cache_modifier=".cg")
        zero_is_below = tl.load(ratios + groups + group, mask=inside, other=0.0) > 0
        counted = tl.where(bad, 0, filters)
        allowed, low = _count_below(descending, first_filter, counted, bar, zero_is_below, ratio, TILE)
        if STARVES:
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

    group = limit * 0
    while (group < groups) & bad:
        tl.store(threshold + group, float("nan"))
        group += 1


@triton.jit
def _count_below(descending, start, filters, threshold, zero_is_below, ratio, TILE: tl.constexpr):
    """Filters of each layer that global and local selection find inferior; without local selection, of both kinds.

    Two searches side by side for the last key above a bar, PROBES places at a time.
    """
    peak = tl.load(descending + start, mask=filters > 0, other=0, cache_modifier=".cg").to(tl.float32, bitcast=True)
    global_bar = tl.maximum(sort_key(threshold) - 1, tl.where(zero_is_below, 0, -1))
    local_bar = sort_key(tl.where(ratio < 0, threshold, ratio * peak))
    probe = tl.arange(0, PROBES)[None, :]
    above = tl.zeros((TILE,), tl.int32)
    local_above = tl.zeros((TILE,), tl.int32)
    # Keys before `above` are above the bar; of the `left` ones after it nothing is known.
    left, local_left = filters, filters
    while tl.max(tl.maximum(left, local_left), axis=0) > 0:
        step, local_step = left // (PROBES + 1) + 1, local_left // (PROBES + 1) + 1
        at = (probe + 1) * step[:, None] - 1
        local_at = (probe + 1) * local_step[:, None] - 1
        place = descending + (start + above)[:, None] + at
        local_place = descending + (start + local_above)[:, None] + local_at
        key = tl.load(place, mask=at < left[:, None], other=-1, cache_modifier=".cg")
        local_key = tl.load(local_place, mask=local_at < local_left[:, None], other=-1, cache_modifier=".cg")
        found = step * tl.sum((key > global_bar[:, None]).to(tl.int32), axis=1)
        local_found = local_step * tl.sum((local_key > local_bar[:, None]).to(tl.int32), axis=1)
        above += found
        local_above += local_found
        left = tl.minimum(left - found, step - 1)
        local_left = tl.minimum(local_left - local_found, local_step - 1)
    return filters - above, filters - local_above
