"""Importance of every filter of one dtype: L1 norm / channels."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl

from ...runtime.triton.fields import (
    CHANNEL_STRIDE,
    CHANNELS,
    FILTER_STRIDE,
    KERNEL0,
    KERNEL1,
    KERNEL2,
    WIDTH,
    kernel_offsets,
)
from ...runtime.triton.launch import kernel
from ...runtime.triton.rows import (
    LONG_COLUMNS,
    LONG_ROWS,
    MEDIUM,
    MEDIUM_COLUMNS,
    MEDIUM_ROWS,
    SHORT,
    SHORT_COLUMNS,
    SHORT_ROWS,
    STRIDED,
    TILE_CHANNELS,
    TILE_FILTERS,
    TILE_FIRST,
    TILE_KIND,
    TILE_LAYER,
    TILE_LENGTH,
    TILE_ROW,
    TILE_STRIDE,
    TILE_WIDTH,
)
from ...runtime.triton.values import divide, magnitude, widen

STRIDED_CHANNELS, STRIDED_ELEMENTS = tl.constexpr(64), tl.constexpr(16)


@kernel
def importance_kernel(pointers, layers, row_tiles, importance, DTYPE: tl.constexpr):
    """One program per tile; writes importance[first_filter + row]."""
    ACC: tl.constexpr = tl.float64 if DTYPE == tl.float64 else tl.float32
    tile = row_tiles + tl.program_id(0).to(tl.int64) * TILE_WIDTH
    layer = tl.load(tile + TILE_LAYER)
    length = tl.load(tile + TILE_LENGTH)
    stride = tl.load(tile + TILE_STRIDE)
    kind = tl.load(tile + TILE_KIND)
    out = importance + tl.load(tile + TILE_FIRST)
    address = tl.load(pointers + layer)
    # Nothing is known about an address from a table: vector loads only where it and all rows are 16-byte aligned.
    size: tl.constexpr = 8 if DTYPE == tl.float64 else (4 if DTYPE == tl.float32 else 2)
    vector: tl.constexpr = 16 // size
    aligned = (address | (length * size) | (stride * size)) % 16 == 0
    if kind == STRIDED:
        _strided(address, layers + layer * WIDTH, tl.load(tile + TILE_ROW), out, DTYPE, ACC)
    elif kind == SHORT:
        if aligned:
            _dense(address, tile, length, stride, out, DTYPE, ACC, SHORT_ROWS, SHORT_COLUMNS, vector)
        else:
            _dense(address, tile, length, stride, out, DTYPE, ACC, SHORT_ROWS, SHORT_COLUMNS, 1)
    elif aligned:
        if kind == MEDIUM:
            _dense(address, tile, length, stride, out, DTYPE, ACC, MEDIUM_ROWS, MEDIUM_COLUMNS, vector)
        else:
            _dense(address, tile, length, stride, out, DTYPE, ACC, LONG_ROWS, LONG_COLUMNS, vector)
    elif kind == MEDIUM:
        _dense(address, tile, length, stride, out, DTYPE, ACC, MEDIUM_ROWS, MEDIUM_COLUMNS, 1)
    else:
        _dense(address, tile, length, stride, out, DTYPE, ACC, LONG_ROWS, LONG_COLUMNS, 1)


@triton.jit
def _dense(
    address,
    tile,
    length,
    stride,
    out,
    DTYPE: tl.constexpr,
    ACC: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """Filters whose elements fill one run of memory; their order in it does not matter to a sum.

    ``VECTOR``: the address is known to be 16-byte aligned, length and stride to be multiples of VECTOR.
    """
    rows = tl.load(tile + TILE_ROW) + tl.arange(0, ROWS)
    inside = rows < tl.load(tile + TILE_FILTERS)
    base = address.to(tl.pointer_type(DTYPE))
    if VECTOR > 1:
        # Dividing and multiplying tells the compiler; a hint on the loaded values would reach the other branch, too.
        base = tl.multiple_of(base, 16)
        length = length // VECTOR * VECTOR
        stride = stride // VECTOR * VECTOR
    base += rows[:, None] * stride
    total = tl.zeros((ROWS, COLUMNS), ACC)
    step = length * 0
    while step * COLUMNS < length:
        column = step * COLUMNS + tl.arange(0, COLUMNS)
        mask = inside[:, None] & (column < length)[None, :]
        total += magnitude(widen(tl.load(base + column[None, :], mask=mask, other=0.0), DTYPE), DTYPE)
        step += 1
    mean = divide(tl.sum(total, axis=1), tl.load(tile + TILE_CHANNELS).to(ACC), ACC)
    tl.store(out + rows, mean.to(tl.float32), mask=inside)


@triton.jit
def _strided(address, fields, row, out, DTYPE: tl.constexpr, ACC: tl.constexpr):
    """One filter with gaps between its elements: a tile of channels x kernel elements at a time."""
    base = address.to(tl.pointer_type(DTYPE)) + row * tl.load(fields + FILTER_STRIDE)
    channels = tl.load(fields + CHANNELS)
    channel_stride = tl.load(fields + CHANNEL_STRIDE)
    elements = (tl.load(fields + KERNEL0) * tl.load(fields + KERNEL1) * tl.load(fields + KERNEL2)).to(tl.int32)
    total = tl.zeros((STRIDED_CHANNELS, STRIDED_ELEMENTS), ACC)
    first = channels * 0
    while first < channels:
        channel = first + tl.arange(0, STRIDED_CHANNELS)
        start = elements * 0
        while start < elements:
            element = start + tl.arange(0, STRIDED_ELEMENTS)
            offset = (channel * channel_stride)[:, None] + kernel_offsets(fields, element)[None, :]
            mask = (channel < channels)[:, None] & (element < elements)[None, :]
            total += magnitude(widen(tl.load(base + offset, mask=mask, other=0.0), DTYPE), DTYPE)
            start += STRIDED_ELEMENTS
        first += STRIDED_CHANNELS
    mean = divide(tl.sum(tl.sum(total, axis=1), axis=0), channels.to(ACC), ACC)
    tl.store(out + row, mean.to(tl.float32))
