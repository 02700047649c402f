"""How many filters every layer gives up: the starvation counter, and where each layer's matches start."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl

from .fields import any_poisoned
from .launch import kernel


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)


@kernel
def starvation_kernel(
    segments,
    slots,
    slot_starts,
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
    """One program. Layers are visited group by group (``slots``), TILE at a time.

    The counter of a group is sequential, but only in its definition: between two layers that reset it, it counts
    the starving layers and fires at every multiple of ``limit``, so prefix sums give it for all layers at once.
    Writes inferior[layer]; first_match[slot], the number of matched filters in the slots before; the counters; and
    makes every threshold NaN if one is.
    """
    every = limit.to(tl.int64)
    matched = limit * 0
    tl.store(first_match, 0)
    group = limit * 0
    while group < groups:
        ratio = tl.load(ratios + group)
        counter = (limit * 0).to(tl.int64)
        if STARVES:
            counter = tl.load(starvation + group).to(tl.int64)
        starved = counter * 0  # starving layers so far
        # The value of `starved` at which the counter would have been 0.
        base = -tl.minimum(counter, every - 1)
        events = counter * 0
        tile = tl.load(slot_starts + group)
        end = tl.load(slot_starts + group + 1)
        while tile < end:
            slot = tile + tl.arange(0, TILE)
            inside = slot < end
            layer = tl.load(slots + slot, mask=inside, other=0)
            filters = tl.load(segments + layer * 3, mask=inside, other=0).to(tl.int32)
            present = inside & (filters > 0)
            allowed = tl.load(counts + layer * 2, mask=present, other=0)
            low = tl.load(counts + layer * 2 + 1, mask=present, other=0)
            if STARVES:
                ruled = tl.where(ratio >= 0, allowed, 0) > 0
                starving = (ruled & (low == 0)).to(tl.int64)
                so_far = starved + tl.cumsum(starving, axis=0)
                resets = tl.where(ruled & (low > 0), so_far, -1)
                last = tl.associative_scan(resets, 0, _larger)
                count = so_far - tl.where(last >= 0, last, base)
                fires = (starving > 0) & (count >= every) & (count % every == 0)
                low = tl.where(fires, 1, low)
                starved += tl.sum(starving, axis=0)
                last_reset = tl.max(resets, axis=0)
                base = tl.where(last_reset >= 0, last_reset, base)
                events += tl.sum(ruled.to(tl.int64), axis=0)
            n_low = tl.where(ratio < 0, low, tl.minimum(allowed, low))
            tl.store(inferior + layer, n_low, mask=inside)
            matches = tl.minimum(n_low, filters - n_low)
            tl.store(first_match + 1 + slot, matched + tl.cumsum(matches, axis=0), mask=inside)
            matched += tl.sum(matches, axis=0)
            tile += TILE
        if STARVES:
            final = starved - base
            final = tl.where(final >= every, final % every, final)
            tl.store(starvation + group, tl.where(events > 0, final, counter).to(tl.int32))
        group += 1

    if any_poisoned(threshold, groups, 16):
        group = limit * 0
        while group < groups:
            tl.store(threshold + group, float("nan"))
            group += 1
