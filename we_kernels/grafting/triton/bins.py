"""How many elements of every tensor or filter fall into each of equally wide bins."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl

from ...runtime.triton.fields import (
    DENSE,
    DTYPE_INDEX,
    FILTER_STRIDE,
    FILTERS,
    FIRST_FILTER,
    ROW,
    RUN,
    WIDTH,
    element_offsets,
)
from ...runtime.triton.launch import kernel
from ...runtime.triton.values import LARGEST_FINITE, divide, widen

CHUNK = 8192
"""Elements that one program takes."""
TILE = tl.constexpr(512)
"""Of these at a time; of a filter, too."""
BIN_COUNTS = (32, 512)
"""Sizes of a histogram: the smallest above the number of bins is taken."""

MAX_REGISTERS = 128
"""Left to itself, ptxas spills a few registers to fit one more block on a multiprocessor."""

LOWEST = -(2**63)
"""What no `_key` and no complement of one is below."""
LARGEST_FINITE_64 = tl.constexpr(0x7FEFFFFFFFFFFFFF)


@kernel
def range_kernel(pointers, layers, chunks, ranges, DTYPE: tl.constexpr, SIZE: tl.constexpr):
    """One program per chunk (layer, number): ranges[layer] becomes the largest key, and the largest complement."""
    layer, fields, base, run, start, end = _chunk(pointers, layers, chunks, DTYPE, SIZE)
    high, low = _range(base, fields, run, start, end, DTYPE)
    tl.atomic_max(ranges + layer * 2, high)
    tl.atomic_max(ranges + layer * 2 + 1, low)


@kernel
def bins_kernel(
    pointers, layers, chunks, ranges, bin_counts, bins, DTYPE: tl.constexpr, SIZE: tl.constexpr, BINS: tl.constexpr
):
    """One program per chunk: adds to bin_counts[layer], which was zero, or marks it by -1."""
    layer, fields, base, run, start, end = _chunk(pointers, layers, chunks, DTYPE, SIZE)
    row = bin_counts + layer.to(tl.int64) * bins
    high = tl.load(ranges + layer * 2)
    low = tl.load(ranges + layer * 2 + 1)
    if _is_finite(high, low, DTYPE):
        total = _counts(base, fields, run, start, end, high, low, bins, DTYPE, BINS)
        bin = tl.arange(0, BINS)
        tl.atomic_add(row + bin, total.to(tl.int64), mask=(bin < bins) & (total > 0))
    else:
        tl.store(row, -1)


@kernel
def filter_bins_kernel(
    pointers, layers, layer_of_filter, bin_counts, bins, DTYPE: tl.constexpr, INDEX: tl.constexpr, BINS: tl.constexpr
):
    """One program per filter: writes bin_counts[filter]."""
    filter = tl.program_id(0).to(tl.int64)
    layer = tl.load(layer_of_filter + filter)
    fields = layers + layer * WIDTH
    if tl.load(fields + DTYPE_INDEX) == INDEX:
        base = tl.load(pointers + layer).to(tl.pointer_type(DTYPE))
        number = filter - tl.load(fields + FIRST_FILTER)
        run = tl.load(fields + DENSE)
        # Of a dense filter, elements are counted from its own first one on.
        base += run * number * tl.load(fields + FILTER_STRIDE)
        begin = (1 - run) * number * tl.load(fields + ROW)
        end = begin + tl.load(fields + ROW)
        high, low = _range(base, fields, run, begin, end, DTYPE)
        bin = tl.arange(0, BINS)
        row = bin_counts + filter * bins + bin
        if _is_finite(high, low, DTYPE):
            total = _counts(base, fields, run, begin, end, high, low, bins, DTYPE, BINS)
            tl.store(row, total.to(tl.int64), mask=bin < bins)
        else:
            tl.store(row, tl.full((BINS,), -1, tl.int64), mask=bin < bins)


@triton.jit
def _chunk(pointers, layers, chunks, DTYPE: tl.constexpr, SIZE: tl.constexpr):
    """Of this program's chunk: layer, its fields, its weight, whether that is a run, first element and end."""
    chunk = tl.program_id(0).to(tl.int64) * 2
    layer = tl.load(chunks + chunk)
    start = tl.load(chunks + chunk + 1).to(tl.int64) * SIZE
    fields = layers + layer * WIDTH
    base = tl.load(pointers + layer).to(tl.pointer_type(DTYPE))
    elements = tl.load(fields + FILTERS) * tl.load(fields + ROW)
    return layer, fields, base, tl.load(fields + RUN), start, tl.minimum(start + SIZE, elements)


@triton.jit
def _range(base, fields, run, begin, end, DTYPE: tl.constexpr):
    """int64: the largest key of these elements, and the largest complement of one."""
    ordered: tl.constexpr = tl.int64 if DTYPE == tl.float64 else tl.int32
    lowest: tl.constexpr = -0x8000000000000000 if DTYPE == tl.float64 else -0x80000000
    high = tl.full((TILE,), lowest, ordered)
    low = tl.full((TILE,), lowest, ordered)
    start = begin
    while start < end:
        index = start + tl.arange(0, TILE)
        key = _key(_load(base, fields, run, index, start, end, DTYPE), DTYPE)
        high = tl.maximum(high, tl.where(index < end, key, lowest))
        low = tl.maximum(low, tl.where(index < end, -1 - key, lowest))
        start += TILE
    return tl.max(high, axis=0).to(tl.int64), tl.max(low, axis=0).to(tl.int64)


@triton.jit
def _counts(base, fields, run, begin, end, high, low, bins, DTYPE: tl.constexpr, BINS: tl.constexpr):
    """int32 [BINS]: how many of these elements are in each bin of a finite range."""
    first, width, part = _edges(high, low, bins, DTYPE)
    total = tl.zeros((BINS,), tl.int32)
    start = begin
    while start < end:
        index = start + tl.arange(0, TILE)
        x = _load(base, fields, run, index, start, end, DTYPE)
        total += _histogram(x, index < end, first, width, part, bins, DTYPE, BINS)
        start += TILE
    return total


@triton.jit
def _load(base, fields, run, index, start, end, DTYPE: tl.constexpr):
    """Elements by their number in the tensor, or in the run of memory at ``base``; 0 from ``end`` on.

    ``start`` is the first of the tile.
    """
    size: tl.constexpr = 8 if DTYPE == tl.float64 else (4 if DTYPE == tl.float32 else 2)
    if run == 1:
        # Nothing is known about an address from a table: vector loads only of whole tiles from aligned addresses.
        if ((base.to(tl.int64) + start * size) % 16 == 0) & (start + TILE <= end):
            x = tl.load(tl.multiple_of(base + start, 16) + tl.arange(0, TILE).to(tl.int64))
        else:
            x = tl.load(base + index, mask=index < end, other=0.0)
    else:
        x = tl.load(base + element_offsets(fields, index), mask=index < end, other=0.0)
    return widen(x, DTYPE)


@triton.jit
def _key(x, DTYPE: tl.constexpr):
    """Integer that orders finite numbers like their values; NaN and infinity are outside of all those."""
    if DTYPE == tl.float64:
        bits = x.to(tl.int64, bitcast=True)
        key = bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF)
    else:
        bits = x.to(tl.int32, bitcast=True)
        key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return key


@triton.jit
def _value(key, DTYPE: tl.constexpr):
    """The number of a `_key` as int64."""
    if DTYPE == tl.float64:
        value = (key ^ ((key >> 63) & 0x7FFFFFFFFFFFFFFF)).to(tl.float64, bitcast=True)
    else:
        short = key.to(tl.int32)
        value = (short ^ ((short >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)
    return value


@triton.jit
def _is_finite(high, low, DTYPE: tl.constexpr):
    """For the largest key and the complement of the least."""
    largest: tl.constexpr = LARGEST_FINITE_64 if DTYPE == tl.float64 else LARGEST_FINITE
    return (high <= largest) & (low <= largest)


@triton.jit
def _edges(high, low, bins, DTYPE: tl.constexpr):
    """First edge, width of the bins, and what elements are multiplied by so that the range does not overflow."""
    ACC: tl.constexpr = tl.float64 if DTYPE == tl.float64 else tl.float32
    most = _value(high, DTYPE)
    least = _value(-1 - low, DTYPE)
    part = tl.where(most - least == float("inf"), 0.25, 1.0).to(ACC)
    least = least * part
    width = divide(most * part - least, tl.cast(bins, ACC), ACC)
    return least, width, part


@triton.jit
def _histogram(x, mask, first, width, part, bins, DTYPE: tl.constexpr, BINS: tl.constexpr):
    """int32 [BINS]: an element is in the bin of the last edge not above it, which is found by halving."""
    ACC: tl.constexpr = tl.float64 if DTYPE == tl.float64 else tl.float32
    scaled = x * part
    found = tl.zeros((TILE,), tl.int32)
    for half in tl.static_range(9 if BINS == 512 else 5):
        edge = found + (BINS >> (half + 1))
        reached = (edge <= bins) & (scaled >= first + edge.to(ACC) * width)
        found = tl.where(reached, edge, found)
    return tl.histogram(tl.where(mask, found, bins), BINS)
