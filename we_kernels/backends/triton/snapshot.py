"""Copies of the filters that are not selected, to a buffer and back."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl

from .fields import CHANNEL_STRIDE, CHANNELS, DENSE, FILTER_STRIDE, FILTERS, FIRST_FILTER, ROW, WIDTH, kernel_offsets
from .importance import LONG_COLUMNS, LONG_ROWS, SHORT_COLUMNS, SHORT_ROWS
from .launch import kernel

STRIDED_BLOCK = tl.constexpr(1024)


@kernel
def snapshot_kernel(
    pointers,
    layers,
    tiles,
    places,
    selected,
    restore,
    DTYPE: tl.constexpr,
    SHORT: tl.constexpr,
):
    """One program per tile (layer, first row) of `importance_kernel`; ``places``: where each layer is in the buffer.

    ``DTYPE`` is the integer as wide as the weights' dtype: only bits are moved.
    """
    tile = tl.program_id(0).to(tl.int64) * 2
    layer = tl.load(tiles + tile)
    row = tl.load(tiles + tile + 1)
    fields = layers + layer * WIDTH
    weight, place = tl.load(pointers + layer), tl.load(places + layer)
    length = tl.load(fields + ROW)
    stride = tl.load(fields + FILTER_STRIDE)
    chosen = selected + tl.load(fields + FIRST_FILTER)
    if tl.load(fields + DENSE) == 0:
        _strided(weight, place, fields, row, length, stride, chosen, restore, DTYPE)
    elif length < SHORT:
        _dense(weight, place, fields, row, length, stride, chosen, restore, DTYPE, SHORT_ROWS, SHORT_COLUMNS, 1)
    else:
        size: tl.constexpr = 8 if tl.int64 == DTYPE else (4 if tl.int32 == DTYPE else 2)
        if (weight | place | (length * size) | (stride * size)) % 16 == 0:
            _dense(
                weight, place, fields, row, length, stride, chosen, restore, DTYPE, LONG_ROWS, LONG_COLUMNS, 16 // size
            )
        else:
            _dense(weight, place, fields, row, length, stride, chosen, restore, DTYPE, LONG_ROWS, LONG_COLUMNS, 1)


@triton.jit
def _dense(
    weight,
    place,
    fields,
    row,
    length,
    stride,
    chosen,
    restore,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    VECTOR: tl.constexpr,
):
    """``VECTOR``: both addresses are 16-byte aligned, length and stride multiples of VECTOR."""
    rows = row + tl.arange(0, ROWS)
    inside = rows < tl.load(fields + FILTERS)
    inside = inside & (tl.load(chosen + rows, mask=inside, other=1) == 0)
    base = weight.to(tl.pointer_type(DTYPE))
    kept = place.to(tl.pointer_type(DTYPE))
    if VECTOR > 1:
        base = tl.multiple_of(base, 16)
        kept = tl.multiple_of(kept, 16)
        length = length // VECTOR * VECTOR
        stride = stride // VECTOR * VECTOR
    base += rows.to(tl.int64)[:, None] * stride
    kept += rows.to(tl.int64)[:, None] * length
    step = length * 0
    while step * COLUMNS < length:
        column = step * COLUMNS + tl.arange(0, COLUMNS)
        _move(base + column[None, :], kept + column[None, :], inside[:, None] & (column < length)[None, :], restore)
        step += 1


@triton.jit
def _strided(weight, place, fields, row, length, stride, chosen, restore, DTYPE: tl.constexpr):
    """One filter with gaps between its elements."""
    if tl.load(chosen + row) == 0:
        base = weight.to(tl.pointer_type(DTYPE)) + row.to(tl.int64) * stride
        kept = place.to(tl.pointer_type(DTYPE)) + row.to(tl.int64) * length
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
