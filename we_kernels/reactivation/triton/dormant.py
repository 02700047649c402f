"""Which units are dormant: a layer per program, then their children."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton.language as tl

from ...runtime.triton.launch import kernel

BLOCK = 1024
"""Units that are looked at at a time."""


@kernel
def dormant_kernel(activity, segments, limits, dormant, BLOCK: tl.constexpr):
    """One program per layer. ``limits``: the threshold, and what is added to the mean."""
    layer = tl.program_id(0).to(tl.int64) * 3
    size, start = tl.load(segments + layer), tl.load(segments + layer + 1)
    total = tl.zeros((BLOCK,), tl.float64)
    at = size * 0
    while at < size:
        index = at + tl.arange(0, BLOCK)
        total += tl.load(activity + start + index, mask=index < size, other=0.0).to(tl.float64)
        at += BLOCK
    mean = tl.sum(total, axis=0) / size.to(tl.float64)
    finite = (mean > float("-inf")) & (mean < float("inf"))
    bar = tl.where(finite, tl.load(limits) * (mean + tl.load(limits + 1)), float("nan"))
    at = size * 0
    while at < size:
        index = at + tl.arange(0, BLOCK)
        own = tl.load(activity + start + index, mask=index < size, other=0.0).to(tl.float64)
        tl.store(dormant + start + index, (own <= bar).to(tl.uint8), mask=index < size)
        at += BLOCK


@kernel
def dormant_parents_kernel(parents, dormant, count, BLOCK: tl.constexpr):
    """A unit is dormant with any of its ancestors, which come before it.

    In place: that others are marked meanwhile changes nothing, as each asks all of its ancestors.
    """
    unit = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = unit < count
    found = tl.load(dormant + unit, mask=inside, other=0)
    child = unit
    parent = tl.load(parents + child, mask=inside, other=-1)
    climbs = (parent >= 0) & (parent < child)
    while tl.sum(climbs.to(tl.int32), axis=0) > 0:
        found = found | tl.load(dormant + parent, mask=climbs, other=0)
        child = tl.where(climbs, parent, 0)
        parent = tl.load(parents + child, mask=climbs, other=-1)
        climbs = (parent >= 0) & (parent < child)
    tl.store(dormant + unit, found, mask=inside)
