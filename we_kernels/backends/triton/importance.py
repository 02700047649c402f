"""Importance of every filter of one dtype: L1 norm / channels."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: SIM300  (compile-time constants are named in capitals, and stand on the left)

import triton
import triton.language as tl

from .fields import (
    CHANNEL_STRIDE,
    CHANNELS,
    DENSE,
    FILTER_STRIDE,
    FILTERS,
    FIRST_FILTER,
    KERNEL0,
    KERNEL1,
    KERNEL2,
    ROW,
    WIDTH,
    divide,
    kernel_offsets,
    magnitude,
    widen,
)
from .launch import kernel

SHORT_ROW = 256
"""Filters of fewer elements are taken many at a time."""
LONG_ROWS, LONG_COLUMNS = tl.constexpr(4), tl.constexpr(512)
SHORT_ROWS, SHORT_COLUMNS = tl.constexpr(64), tl.constexpr(32)
STRIDED_CHANNELS, STRIDED_ELEMENTS = tl.constexpr(64), tl.constexpr(16)


def rows_per_program(row: int, dense: bool) -> int:
    """How many filters of ``row`` elements one program takes; the kernel branches the same way."""
    if not dense:
        return 1
    return int((SHORT_ROWS if row < SHORT_ROW else LONG_ROWS).value)


@kernel
def importance_kernel(
    pointers,
    layers,
    tiles,
    importance,
    DTYPE: tl.constexpr,
    SHORT: tl.constexpr,
):
    """One program per tile (layer, first row); writes importance[first_filter + row]."""
    ACC: tl.constexpr = tl.float64 if DTYPE == tl.float64 else tl.float32
    tile = tl.program_id(0).to(tl.int64) * 2
    layer = tl.load(tiles + tile)
    row = tl.load(tiles + tile + 1)
    fields = layers + layer * WIDTH
    address = tl.load(pointers + layer)
    length = tl.load(fields + ROW)
    stride = tl.load(fields + FILTER_STRIDE)
    out = importance + tl.load(fields + FIRST_FILTER)
    # Nothing is known about an address from a table: vector loads only where it and all rows are 16-byte aligned.
    size: tl.constexpr = 8 if DTYPE == tl.float64 else (4 if DTYPE == tl.float32 else 2)
    aligned = (address | (length * size) | (stride * size)) % 16 == 0
    if tl.load(fields + DENSE) == 0:
        _strided(address, fields, row, out, DTYPE, ACC)
    elif length < SHORT:
        if aligned:
            _dense(address, fields, row, length, stride, out, DTYPE, ACC, SHORT_ROWS, SHORT_COLUMNS, 16 // size)
        else:
            _dense(address, fields, row, length, stride, out, DTYPE, ACC, SHORT_ROWS, SHORT_COLUMNS, 1)
    elif aligned:
        _dense(address, fields, row, length, stride, out, DTYPE, ACC, LONG_ROWS, LONG_COLUMNS, 16 // size)
    else:
        _dense(address, fields, row, length, stride, out, DTYPE, ACC, LONG_ROWS, LONG_COLUMNS, 1)


@triton.jit
def _dense(
    address,
    fields,
    row,
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
    rows = row + tl.arange(0, ROWS)
    inside = rows < tl.load(fields + FILTERS)
    base = address.to(tl.pointer_type(DTYPE))
    if VECTOR > 1:
        # Dividing and multiplying tells the compiler; a hint on the loaded values would reach the other branch, too.
        base = tl.multiple_of(base, 16)
        length = length // VECTOR * VECTOR
        stride = stride // VECTOR * VECTOR
    base += rows.to(tl.int64)[:, None] * stride
    total = tl.zeros((ROWS, COLUMNS), ACC)
    step = length * 0
    while step * COLUMNS < length:
        column = step * COLUMNS + tl.arange(0, COLUMNS)
        mask = inside[:, None] & (column < length)[None, :]
        total += magnitude(widen(tl.load(base + column[None, :], mask=mask, other=0.0), DTYPE), DTYPE)
        step += 1
    mean = divide(tl.sum(total, axis=1), tl.load(fields + CHANNELS).to(ACC), ACC)
    tl.store(out + rows, mean.to(tl.float32), mask=inside)


@triton.jit
def _strided(address, fields, row, out, DTYPE: tl.constexpr, ACC: tl.constexpr):
    """One filter with gaps between its elements: a tile of channels x kernel elements at a time."""
    base = address.to(tl.pointer_type(DTYPE)) + row.to(tl.int64) * tl.load(fields + FILTER_STRIDE)
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
