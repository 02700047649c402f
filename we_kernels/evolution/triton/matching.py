"""Matching in one launch: thresholds of the groups, order of the layers, and how many filters each layer gives up."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl

from ...runtime.triton.launch import kernel
from ...runtime.triton.values import LARGEST_FINITE
from .rank import ranks
from .starvation import SLOT_WIDTH, count_inferior
from .threshold import count_chunk, place_from_top

PROGRAM_FIELDS = ("kind", "owner", "first", "start", "total", "base")
"""What a program reads first. ``owner`` is a group or a layer of ``total`` filters, of which it takes some, from
``first`` on; ``start``: where the owner's part of the scratch memory begins; ``base``: its first filter, or -1 if it
is a group whose filters are not consecutive."""
PROGRAM_WIDTH = tl.constexpr(8)
"""int32 of a program, with the unused ones: one sector of memory."""

COUNTED_GROUP, RANKED_GROUP, RANKED_LAYER = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
"""Kinds of programs: some of a large group, of a small one, of a layer."""


@kernel
def matching_kernel(
    importance,
    programs,
    members,
    slots,
    slot_table,
    num_layers,
    rates,
    ratios,
    groups,
    limit,
    starvation,
    keys,
    candidates,
    larger,
    counted,
    poisoned,
    finished,
    order,
    descending,
    threshold,
    donor,
    inferior,
    first_match,
    CHUNK: tl.constexpr,
    PIVOTS: tl.constexpr,
    LANES: tl.constexpr,
    ITEMS: tl.constexpr,
    CANDIDATES: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    STARVES: tl.constexpr,
    LAYERS: tl.constexpr,
):
    """One program per row of `PROGRAM_FIELDS`; the last one to finish does `count_inferior`.

    A layer's order does not depend on thresholds, so nothing waits for them but that last program. ``larger``,
    ``counted``, ``poisoned`` and ``finished`` are zero before and after.
    """
    program = programs + tl.program_id(0).to(tl.int64) * PROGRAM_WIDTH
    kind = tl.load(program)
    owner = tl.load(program + 1)
    first = tl.load(program + 2)
    start = tl.load(program + 3)
    total = tl.load(program + 4)
    base = tl.load(program + 5)
    if tl.program_id(0) == tl.num_programs(0) - 1:
        _fetch_tables(slots, slot_table, num_layers, ratios, groups, starvation, STARVES, LAYERS)

    if kind == COUNTED_GROUP:
        chunk, work = (owner, first, start, total, base), (keys, candidates, larger, counted)
        count_chunk(importance, members, chunk, rates, work, threshold, CHUNK, PIVOTS, LANES, ITEMS, CANDIDATES)
    else:
        row, mine, rank = ranks(importance, members, first, start, total, base, ROWS, KEYS)
        inside = row < total
        if kind == RANKED_GROUP:
            wanted = place_from_top(tl.load(rates + owner), total)
            here = threshold + owner + row * 0
            tl.store(here, mine.to(tl.float32, bitcast=True), mask=inside & (rank == wanted))
            if total == 0:
                tl.store(threshold + owner, 0.0)
        else:
            bad = inside & ((mine < 0) | (mine > LARGEST_FINITE))
            tl.atomic_add(poisoned + row * 0, 1, mask=bad, sem="relaxed")
            # Ranks of keys that are not finite or negative are not a permutation, and nobody reads them.
            placed = inside & (rank < total)
            tl.store(order + start + rank, row, mask=placed)
            tl.store(descending + start + rank, mine, mask=placed)
            tl.store(donor + start + row, tl.full((ROWS,), -1, tl.int32), mask=inside)

    tl.debug_barrier()  # all threads' writes come before the count of this program
    if tl.atomic_add(finished, 1) == tl.num_programs(0) - 1:
        rule, found = (ratios, groups, limit), (inferior, first_match)
        count_inferior(
            slot_table, num_layers, descending, rule, threshold, poisoned, starvation, found, STARVES, LAYERS
        )
        tl.debug_barrier()  # all threads have read what is set back
        tl.store(poisoned, 0)
        tl.store(finished, 0)


@triton.jit
def _fetch_tables(
    slots, slot_table, num_layers, ratios, groups, starvation, STARVES: tl.constexpr, LAYERS: tl.constexpr
):
    """Into the L2 cache, before the last program to finish asks: the first access after a training step takes 0.7 us.

    Nobody waits for these loads, which the compiler drops unless they are volatile.
    """
    index = tl.arange(0, LAYERS)
    slot = num_layers * 0
    while slot < num_layers:
        inside = slot + index < num_layers
        tl.load(slot_table + (slot + index) * SLOT_WIDTH, mask=inside, volatile=True)
        tl.load(slots + slot + index, mask=inside, volatile=True)
        slot += LAYERS
    tl.load(ratios + index, mask=index < 2 * groups, volatile=True)
    if STARVES:
        tl.load(starvation + index, mask=index < groups, volatile=True)
