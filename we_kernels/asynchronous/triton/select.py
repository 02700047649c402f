"""A random subset of the filters of every layer."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton.language as tl

from ...runtime.triton.launch import kernel
from ...runtime.triton.philox import philox

MAX_REGISTERS = 168
"""Left to itself, ptxas spills a few to fit more blocks on a multiprocessor."""


@kernel
def select_kernel(
    segments,
    tiles,
    rate,
    seed,
    step,
    selected,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    REPLACEMENT: tl.constexpr,
):
    """One program per tile (layer, first row) of ROWS filters; computes the keys of the whole layer anew."""
    tile = tl.program_id(0).to(tl.int64) * 2
    layer = tl.load(tiles + tile)
    first_row = tl.load(tiles + tile + 1)
    filters = tl.load(segments + layer * 3)
    start = tl.load(segments + layer * 3 + 1)
    counter, key = tl.load(step), tl.load(seed)

    share = tl.load(rate)
    share = tl.where(share > 0, tl.where(share < 1, share, 1.0), 0.0)
    expected = share * filters.to(tl.float64)
    wanted = expected.to(tl.int64)
    if not REPLACEMENT:
        rest = expected - wanted.to(tl.float64)
        wanted += ((rest > 0.5) | ((rest == 0.5) & (wanted % 2 == 1))).to(tl.int64)
    wanted = tl.maximum(wanted, 1)

    row = first_row + tl.arange(0, ROWS)
    mine = philox(row, layer, counter, key)
    found = tl.zeros((ROWS, KEYS), tl.int32)
    scan = filters * 0
    while scan < filters:
        index = scan.to(tl.int32) + tl.arange(0, KEYS)
        number = philox(index, layer, counter, key)
        if REPLACEMENT:
            target = tl.where(index < wanted, (number * filters) >> 32, -1)
            found += (target[None, :] == row[:, None]).to(tl.int32)
        else:
            # An equal number counts when it comes first; numbers past the end are larger than all.
            bar = mine[:, None] + (index[None, :] < row[:, None]).to(tl.int64)
            number = tl.where(index < filters, number, 0x100000000)
            found += (number[None, :] < bar).to(tl.int32)
        scan += KEYS
    count = tl.sum(found, axis=1)
    if REPLACEMENT:
        chosen = count > 0
    else:
        chosen = count < wanted
    tl.store(selected + start + row, chosen.to(tl.uint8), mask=row < filters)
