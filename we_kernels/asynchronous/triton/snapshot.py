"""Copies of the filters that are not selected, to a buffer and back."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl

from ...runtime.triton.fields import CHANNEL_STRIDE, CHANNELS, WIDTH, kernel_offsets
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
    TILE_FILTERS,
    TILE_FIRST,
    TILE_KIND,
    TILE_LAYER,
    TILE_LENGTH,
    TILE_ROW,
    TILE_STRIDE,
    TILE_WIDTH,
)

STRIDED_BLOCK = tl.constexpr(1024)


@kernel
def snapshot_kernel(pointers, layers, row_tiles, places, selected, restore, DTYPE: tl.constexpr):
    """One program per tile of `importance_kernel`; ``places``: where each layer is in the buffer.

    ``DTYPE`` is the integer as wide as the weights' dtype: only bits are moved.
    """
    tile = row_tiles + tl.program_id(0).to(tl.int64) * TILE_WIDTH
    layer = tl.load(tile + TILE_LAYER)
    weight, place = tl.load(pointers + layer), tl.load(places + layer)
    length = tl.load(tile + TILE_LENGTH)
    stride = tl.load(tile + TILE_STRIDE)
    kind = tl.load(tile + TILE_KIND)
    chosen = selected + tl.load(tile + TILE_FIRST)
    size: tl.constexpr = 8 if DTYPE == tl.int64 else (4 if DTYPE == tl.int32 else 2)
    vector: tl.constexpr = 16 // size
    aligned = (weight | place | (length * size) | (stride * size)) % 16 == 0
    ways = (weight, place, tile, length, stride, chosen, restore)
    if kind == STRIDED:
        _strided(ways, layers + layer * WIDTH, DTYPE)
    elif kind == SHORT:
        _dense(ways, DTYPE, SHORT_ROWS, SHORT_COLUMNS, 1)
    elif aligned:
        if kind == MEDIUM:
            _dense(ways, DTYPE, MEDIUM_ROWS, MEDIUM_COLUMNS, vector)
        else:
            _dense(ways, DTYPE, LONG_ROWS, LONG_COLUMNS, vector)
    elif kind == MEDIUM:
        _dense(ways, DTYPE, MEDIUM_ROWS, MEDIUM_COLUMNS, 1)
    else:
        _dense(ways, DTYPE, LONG_ROWS, LONG_COLUMNS, 1)


@triton.jit
def _dense(ways, DTYPE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, VECTOR: tl.constexpr):
    """``VECTOR``: both addresses are 16-byte aligned, length and stride multiples of VECTOR."""
    weight, place, tile, length, stride, chosen, restore = ways
    rows = tl.load(tile + TILE_ROW) + tl.arange(0, ROWS)
    inside = rows < tl.load(tile + TILE_FILTERS)
    inside = inside & (tl.load(chosen + rows, mask=inside, other=1) == 0)
    base = weight.to(tl.pointer_type(DTYPE))
    kept = place.to(tl.pointer_type(DTYPE))
    if VECTOR > 1:
        base = tl.multiple_of(base, 16)
        kept = tl.multiple_of(kept, 16)
        length = length // VECTOR * VECTOR
        stride = stride // VECTOR * VECTOR
    base += rows[:, None] * stride
    kept += rows[:, None] * length
    step = length * 0
    while step * COLUMNS < length:
        column = step * COLUMNS + tl.arange(0, COLUMNS)
        _move(base + column[None, :], kept + column[None, :], inside[:, None] & (column < length)[None, :], restore)
        step += 1


@triton.jit
def _strided(ways, fields, DTYPE: tl.constexpr):
    """One filter with gaps between its elements."""
    weight, place, tile, length, stride, chosen, restore = ways
    row = tl.load(tile + TILE_ROW)
    if tl.load(chosen + row) == 0:
        base = weight.to(tl.pointer_type(DTYPE)) + row * stride
        kept = place.to(tl.pointer_type(DTYPE)) + row * length
        elements = (length // tl.load(fields + CHANNELS)).to(tl.int32)
        channel_stride = tl.load(fields + CHANNEL_STRIDE)
        start = length * 0
        while start < length:
            index = (start + tl.arange(0, STRIDED_BLOCK)).to(tl.int32)
            offset = (index // elements).to(tl.int64) * channel_stride + kernel_offsets(fields, index % elements)
            _move(base + offset, kept + index, index < length, restore)
            start += STRIDED_BLOCK


@triton.jit
def _move(weight, place, mask, restore):
    if restore != 0:
        tl.store(weight, tl.load(place, mask=mask, other=0), mask=mask)
    else:
        tl.store(place, tl.load(weight, mask=mask, other=0), mask=mask)
