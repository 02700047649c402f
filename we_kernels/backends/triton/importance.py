"""Importance of every filter of one dtype: L1 norm / channels."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: SIM300  (compile-time constants are named in capitals, and stand on the left)

import triton
import triton.language as tl

from .fields import (
    CHANNEL_STRIDE,
    CHANNELS,
    FILTER_STRIDE,
    KERNEL0,
    KERNEL1,
    KERNEL2,
    WIDTH,
    divide,
    kernel_offsets,
    magnitude,
    widen,
)
from .launch import kernel

TILE_FIELDS = ("layer", "row", "filters", "length", "stride", "first_filter", "channels", "kind")
"""Columns of the table of tiles: all that a program needs before it can read weights, so that it waits for one line of
memory. ``length`` and ``stride``: of a filter, in elements; ``kind``: see `kind_of`."""


def _column(name: str) -> tl.constexpr:
    return tl.constexpr(TILE_FIELDS.index(name))


TILE_WIDTH = tl.constexpr(len(TILE_FIELDS))
TILE_LAYER, TILE_ROW, TILE_FILTERS, TILE_LENGTH = map(_column, ("layer", "row", "filters", "length"))
TILE_STRIDE, TILE_FIRST, TILE_CHANNELS, TILE_KIND = map(_column, ("stride", "first_filter", "channels", "kind"))

STRIDED, SHORT, MEDIUM, LONG = (tl.constexpr(kind) for kind in range(4))
"""Kinds of filters: with gaps, and gapless ones by their number of elements."""
MEDIUM_FROM, LONG_FROM = 256, 1024
SHORT_ROWS, SHORT_COLUMNS = tl.constexpr(32), tl.constexpr(32)
MEDIUM_ROWS, MEDIUM_COLUMNS = tl.constexpr(8), tl.constexpr(256)
LONG_ROWS, LONG_COLUMNS = tl.constexpr(4), tl.constexpr(512)
STRIDED_CHANNELS, STRIDED_ELEMENTS = tl.constexpr(64), tl.constexpr(16)


def kind_of(length: int, dense: bool) -> int:
    """How filters of so many elements are read."""
    if not dense:
        return int(STRIDED.value)
    return int((SHORT if length < MEDIUM_FROM else MEDIUM if length < LONG_FROM else LONG).value)


def rows_per_program(kind: int) -> int:
    """How many filters of a kind one program takes."""
    return int((1, SHORT_ROWS.value, MEDIUM_ROWS.value, LONG_ROWS.value)[kind])


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
