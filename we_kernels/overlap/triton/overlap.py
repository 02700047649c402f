"""Overlap of filters: rows of length 1 in float32 or float64, then tiles of their products, then the layers' sums."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl

from ...runtime.triton.fields import (
    CHANNEL_STRIDE,
    DENSE,
    DTYPE_INDEX,
    FILTER_STRIDE,
    FILTERS,
    FIRST_FILTER,
    KERNEL0,
    KERNEL1,
    KERNEL2,
    ROW,
    WIDTH,
    kernel_offsets,
)
from ...runtime.triton.launch import kernel
from ...runtime.triton.values import divide, magnitude, square_root, widen

OVERLAP_TILE = 64
"""Filters on each side of a tile of cosines."""
OVERLAP_DEPTH = 16
"""Elements of a filter at a time; normalised rows are padded with zeros to a multiple. With 32, Triton 3.6 spills
registers for sm_80 and sm_100."""


@triton.jit
def _typed(units, ACC: tl.constexpr):
    """The buffer of rows comes as float32, whatever is in it, so that the kernels' signatures are fixed."""
    if ACC == tl.float64:
        typed = units.to(tl.pointer_type(tl.float64), bitcast=True)
    else:
        typed = units
    return typed


@triton.jit
def _elements(address, fields, offset, element, length, DTYPE: tl.constexpr):
    """A filter's elements by their number, widened; in memory order if it is dense, else channel by channel."""
    if tl.load(fields + DENSE) == 0:
        kernel_size = (tl.load(fields + KERNEL0) * tl.load(fields + KERNEL1) * tl.load(fields + KERNEL2)).to(tl.int32)
        channel = (element // kernel_size).to(tl.int64)
        position = channel * tl.load(fields + CHANNEL_STRIDE) + kernel_offsets(fields, element % kernel_size)
    else:
        position = element.to(tl.int64)
    pointers = address.to(tl.pointer_type(DTYPE)) + offset + position
    return widen(tl.load(pointers, mask=element < length, other=0.0), DTYPE)


@kernel
def unit_rows_kernel(
    pointers,
    layers,
    layer_of_filter,
    row_starts,
    units,
    DTYPE: tl.constexpr,
    INDEX: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per filter of the bank; those of other dtypes leave at once.

    Divides by the largest magnitude first, so that no square overflows. A row of zeros stays one; a NaN or infinity
    makes the whole row NaN.
    """
    ACC: tl.constexpr = tl.float64 if DTYPE == tl.float64 else tl.float32
    filter_index = tl.program_id(0)
    layer = tl.load(layer_of_filter + filter_index)
    fields = layers + layer * WIDTH
    if tl.load(fields + DTYPE_INDEX) == INDEX:
        address = tl.load(pointers + layer)
        length = tl.load(fields + ROW).to(tl.int32)
        row = filter_index - tl.load(fields + FIRST_FILTER)
        offset = row * tl.load(fields + FILTER_STRIDE)
        padded = (length + DEPTH - 1) // DEPTH * DEPTH
        out = _typed(units, ACC) + tl.load(row_starts + layer) + row * padded

        # The maximum of bits: that of float32 flushes subnormals in Triton 3.3.
        INT: tl.constexpr = tl.int64 if DTYPE == tl.float64 else tl.int32
        peaks = tl.zeros((BLOCK,), INT)
        start = length * 0
        while start < length:
            value = _elements(address, fields, offset, start + tl.arange(0, BLOCK), length, DTYPE)
            peaks = tl.maximum(peaks, magnitude(value, DTYPE).to(INT, bitcast=True))
            start += BLOCK
        peak = tl.max(peaks, axis=0).to(ACC, bitcast=True)
        peak = tl.where(peak == 0, 1.0, peak).to(ACC)

        squares = tl.zeros((BLOCK,), ACC)
        start = length * 0
        while start < length:
            value = _elements(address, fields, offset, start + tl.arange(0, BLOCK), length, DTYPE)
            value = divide(value, tl.zeros((BLOCK,), ACC) + peak, ACC)
            squares += value * value
            start += BLOCK
        norm = square_root(tl.sum(squares, axis=0), ACC)
        norm = tl.where(norm == 0, 1.0, norm).to(ACC)

        start = length * 0
        while start < padded:
            element = start + tl.arange(0, BLOCK)
            value = _elements(address, fields, offset, element, length, DTYPE)
            value = divide(value, tl.zeros((BLOCK,), ACC) + peak, ACC)
            value = divide(value, tl.zeros((BLOCK,), ACC) + norm, ACC)
            tl.store(out + element, value, mask=element < padded)
            start += BLOCK


@kernel
def overlap_kernel(
    units,
    layers,
    tiles,
    row_starts,
    sums,
    maximum_bits,
    ACC: tl.constexpr,
    TILE: tl.constexpr,
    DEPTH: tl.constexpr,
):
    """One program per tile (layer, first row, first column) on or above the diagonal; those of other dtypes leave.

    Writes the sum of the tile's |cosines| to its own place, and raises the maxima of its rows and columns. Those are
    compared as integers, whose maximum does not depend on the order; NaN is the largest.
    """
    tile = tl.program_id(0).to(tl.int64)
    layer = tl.load(tiles + tile * 3)
    fields = layers + layer * WIDTH
    if (tl.load(fields + DTYPE_INDEX) == 1) == (ACC == tl.float64):
        filters = tl.load(fields + FILTERS).to(tl.int32)
        row = tl.load(tiles + tile * 3 + 1) + tl.arange(0, TILE)
        column = tl.load(tiles + tile * 3 + 2) + tl.arange(0, TILE)
        padded = (tl.load(fields + ROW).to(tl.int32) + DEPTH - 1) // DEPTH * DEPTH
        rows = _typed(units, ACC) + tl.load(row_starts + layer)
        left = rows + row.to(tl.int64) * padded
        right = rows + column.to(tl.int64) * padded
        dots = tl.zeros((TILE, TILE), ACC)
        start = padded * 0
        if ACC == tl.float64:
            # Triton 3.3 has no matrix product in float64.
            while start < padded:
                a = tl.load(left + start, mask=row < filters, other=0.0)
                b = tl.load(right + start, mask=column < filters, other=0.0)
                dots += a[:, None] * b[None, :]
                start += 1
        else:
            depth = tl.arange(0, DEPTH)
            while start < padded:
                a = tl.load((left + start)[:, None] + depth[None, :], mask=(row < filters)[:, None], other=0.0)
                b = tl.load((right + start)[None, :] + depth[:, None], mask=(column < filters)[None, :], other=0.0)
                dots += tl.dot(a, b, input_precision="ieee")
                start += DEPTH
        cosine = magnitude(dots, ACC).to(tl.float32)
        cosine = tl.where(cosine > 1.0, 1.0, cosine)
        pair = (row[:, None] < column[None, :]) & (column < filters)[None, :]
        cosine = tl.where(pair, cosine, 0.0)
        tl.store(sums + tile, tl.sum(tl.sum(cosine, axis=1), axis=0))
        bits = cosine.to(tl.int32, bitcast=True)
        maximum_bits += tl.load(fields + FIRST_FILTER)
        tl.atomic_max(maximum_bits + row, tl.max(bits, axis=1), mask=row < filters)
        tl.atomic_max(maximum_bits + column, tl.max(bits, axis=0), mask=column < filters)


@kernel
def overlap_mean_kernel(sums, tile_starts, layers, mean, BLOCK: tl.constexpr):
    """One program per layer: its tiles' sums, in a fixed order, divided by its number of pairs."""
    layer = tl.program_id(0)
    end = tl.load(tile_starts + layer + 1)
    first = tl.load(tile_starts + layer)
    total = tl.zeros((BLOCK,), tl.float64)
    while first < end:
        tile = first + tl.arange(0, BLOCK)
        total += tl.load(sums + tile, mask=tile < end, other=0.0).to(tl.float64)
        first += BLOCK
    filters = tl.load(layers + layer.to(tl.int64) * WIDTH + FILTERS)
    pairs = filters * (filters - 1) // 2
    pairs = tl.where(pairs > 0, pairs, 1).to(tl.float64)
    tl.store(mean + layer, (tl.sum(total, axis=0) / pairs).to(tl.float32))
