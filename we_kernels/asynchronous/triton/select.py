"""A random subset of the filters of every layer."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl

from ...runtime.triton.launch import kernel

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
    mine = _philox(row, layer, counter, key)
    found = tl.zeros((ROWS, KEYS), tl.int32)
    scan = filters * 0
    while scan < filters:
        index = scan.to(tl.int32) + tl.arange(0, KEYS)
        number = _philox(index, layer, counter, key)
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


@triton.jit
def _philox(row, layer, step, seed):
    """The first number of Philox4x32-10 (Salmon et al. 2011), 0 to 2^32 - 1 as int64."""
    c0 = row.to(tl.uint32)
    c1 = c0 * 0 + layer.to(tl.uint32)
    c2 = c0 * 0 + (step & 0xFFFFFFFF).to(tl.uint32)
    c3 = c0 * 0 + ((step >> 32) & 0xFFFFFFFF).to(tl.uint32)
    k0 = (seed & 0xFFFFFFFF).to(tl.uint32)
    k1 = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    for _ in tl.static_range(10):
        a = c0.to(tl.uint64) * 0xD2511F53
        b = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (b >> 32).to(tl.uint32) ^ c1 ^ k0
        c1 = b.to(tl.uint32)
        c2 = (a >> 32).to(tl.uint32) ^ c3 ^ k1
        c3 = a.to(tl.uint32)
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0.to(tl.int64)
