"""Blend every network with the one before it, all in one pass."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl

from ...runtime.triton.fields import FILTERS, FIRST_FILTER, ROW, WIDTH, element_offsets
from ...runtime.triton.launch import kernel
from ...runtime.triton.values import narrow, widen

BLEND_TILE = 1024
"""Elements that one program takes, of every network."""
MAX_REGISTERS = 160
"""Of a thread. Without a limit the compiler of Triton 3.6 stops at 128 and spills two."""
STRIDED_TILE = tl.constexpr(128)
"""Of these at a time where strides differ: their 64-bit offsets would take too many registers."""


@kernel
def blend_kernel(
    pointers,
    layers,
    table_stride,
    num_layers,
    chunks,
    runs,
    coefficients,
    columns,
    networks,
    written,
    DTYPE: tl.constexpr,
    PER_FILTER: tl.constexpr,
    SIZE: tl.constexpr,
):
    """One program per chunk (layer, number).

    ``pointers`` is [networks, L]; the layers of network k are at ``layers + k * table_stride``; ``runs[layer]``: in all
    networks the tensor fills a run of memory, in the same order.
    """
    chunk = tl.program_id(0).to(tl.int64) * 2
    layer = tl.load(chunks + chunk)
    start = tl.load(chunks + chunk + 1).to(tl.int64) * SIZE
    fields = layers + layer * WIDTH
    end = tl.load(fields + FILTERS) * tl.load(fields + ROW)
    first = coefficients + (tl.load(fields + FIRST_FILTER) if PER_FILTER else layer.to(tl.int64))
    ways = (pointers + layer, fields, table_stride, num_layers, first, columns, networks, written)
    if tl.load(runs + layer) == 1:
        addresses = tl.load(pointers + layer)
        k = networks * 0
        while k < networks:
            addresses |= tl.load(pointers + layer + k * num_layers)
            k += 1
        if (addresses % 16 == 0) & (start + SIZE <= end):
            _blend(ways, start, end, PER_FILTER, 2, DTYPE, SIZE)
        else:
            _blend(ways, start, end, PER_FILTER, 1, DTYPE, SIZE)
    else:
        end = tl.minimum(start + SIZE, end)
        while start < end:
            _blend(ways, start, end, PER_FILTER, 0, DTYPE, STRIDED_TILE)
            start += STRIDED_TILE


@triton.jit
def _blend(ways, start, end, PER_FILTER: tl.constexpr, WAY: tl.constexpr, DTYPE: tl.constexpr, SIZE: tl.constexpr):
    """The last network is read first, as the neighbour of the first one, and not again."""
    ACC: tl.constexpr = tl.float64 if DTYPE == tl.float64 else tl.float32
    coefficients, columns, networks, written = ways[4], ways[5], ways[6], ways[7]
    index = start + tl.arange(0, SIZE)
    inside = index < end
    if PER_FILTER:
        coefficients += index // tl.load(ways[1] + ROW)
    last = networks - 1
    of_last = _load(_place(ways, last, index, WAY, DTYPE), inside, WAY, DTYPE)
    neighbour = of_last
    k = networks * 0
    while k < written:
        place = _place(ways, k, index, WAY, DTYPE)
        own = of_last
        if k < last:
            own = _load(place, inside, WAY, DTYPE)
        at = coefficients + k.to(tl.int64) * columns
        share = (tl.load(at, mask=inside, other=0.0) if PER_FILTER else tl.load(at)).to(ACC)
        new = share * own + (1.0 - share) * neighbour
        if DTYPE == tl.bfloat16:  # by its bits: the interpreter of Triton 3.6 has no bfloat16 constants
            bits = tl.where(new != new, 0x7FC0, narrow(new, DTYPE).to(tl.int16, bitcast=True))
            rounded = bits.to(tl.int16).to(DTYPE, bitcast=True)
        elif DTYPE == tl.float16:
            rounded = tl.where(new != new, float("nan"), narrow(new, DTYPE))
        else:
            rounded = new
        if WAY == 2:
            tl.store(place, rounded)
        else:
            tl.store(place, rounded, mask=inside)
        neighbour = own
        k += 1


@triton.jit
def _place(ways, k, index, WAY: tl.constexpr, DTYPE: tl.constexpr):
    """Pointers to the elements of network k. WAY: 0 any strides, 1 a run of memory, 2 an aligned run."""
    base = tl.load(ways[0] + k * ways[3]).to(tl.pointer_type(DTYPE))
    if WAY == 2:
        place = tl.multiple_of(base, 16) + index
    elif WAY == 1:
        place = base + index
    else:
        place = base + element_offsets(ways[1] + k * ways[2], index)
    return place


@triton.jit
def _load(place, inside, WAY: tl.constexpr, DTYPE: tl.constexpr):
    if WAY == 2:
        x = tl.load(place)
    else:
        x = tl.load(place, mask=inside, other=0.0)
    return widen(x, DTYPE)
