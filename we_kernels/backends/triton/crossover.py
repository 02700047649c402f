"""Overwrite inferior filters with a combination of theirs and their donors' elements."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: SIM300  (compile-time constants are named in capitals, and stand on the left)

import triton
import triton.language as tl

from .fields import (
    BLEND,
    CHANNEL_STRIDE,
    CHANNELS,
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
    divide,
    kernel_offsets,
    magnitude,
    narrow,
    widen,
)
from .launch import kernel

PROGRAMS = 2048
"""Programs of one launch, each of which takes several filters in turn: 16 on each of 128 multiprocessors."""

MAX_REGISTERS = 128
"""Left to itself, ptxas spills a few registers to fit one more block on a multiprocessor."""

TILE_CHANNELS, TILE_ELEMENTS = tl.constexpr(32), tl.constexpr(16)
RUN = tl.constexpr(1024)
LAST = tl.constexpr(0x7FFFFFFF)
"""Code of lanes past the end of a kernel."""


@kernel
def crossover_kernel(
    pointers,
    layers,
    layer_of_filter,
    filters_in_bank,
    donor,
    DTYPE: tl.constexpr,
    INDEX: tl.constexpr,
    RELEASED: tl.constexpr,
):
    """For given donors: program i takes filters i, i + programs, ...; donors outside of the layer count as -1."""
    filter = tl.program_id(0).to(tl.int64)
    while filter < filters_in_bank:
        source = tl.load(donor + filter)
        if source >= 0:
            layer = tl.load(layer_of_filter + filter)
            fields = layers + layer * WIDTH
            if (tl.load(fields + DTYPE_INDEX) == INDEX) & (source < tl.load(fields + FILTERS)):
                row = filter - tl.load(fields + FIRST_FILTER)
                _cross(tl.load(pointers + layer), fields, row, source, DTYPE, RELEASED)
        filter += tl.num_programs(0)


@kernel
def match_and_cross_kernel(
    pointers,
    layers,
    slots,
    num_layers,
    first_match,
    order,
    inferior,
    donor,
    DTYPE: tl.constexpr,
    INDEX: tl.constexpr,
    RELEASED: tl.constexpr,
    SEARCH: tl.constexpr,
):
    """For matches still to be read off the ranking: program i takes matches i, i + programs, ... and writes donor."""
    match = tl.program_id(0)
    end = tl.load(first_match + num_layers)
    while match < end:
        slot = _slot_of(match, first_match, num_layers, SEARCH)
        layer = tl.load(slots + slot)
        fields = layers + layer * WIDTH
        if tl.load(fields + DTYPE_INDEX) == INDEX:
            start = tl.load(fields + FIRST_FILTER)
            k = match - tl.load(first_match + slot)
            dominant = tl.load(fields + FILTERS) - tl.load(inferior + layer)
            source = tl.load(order + start + k)
            row = tl.load(order + start + dominant + k).to(tl.int64)
            tl.store(donor + start + row, source)
            _cross(tl.load(pointers + layer), fields, row, source, DTYPE, RELEASED)
        match += tl.num_programs(0)


@triton.jit
def _slot_of(match, first_match, num_layers, SEARCH: tl.constexpr):
    """The slot whose run of matches holds ``match``: as many slots end at or before it."""
    before = tl.zeros((SEARCH,), tl.int32)
    start = num_layers * 0
    while start < num_layers:
        index = start + tl.arange(0, SEARCH)
        ends = tl.load(first_match + 1 + index, mask=index < num_layers, other=LAST)
        before += (ends <= match).to(tl.int32)
        start += SEARCH
    return tl.sum(before, axis=0)


@triton.jit
def _cross(address, fields, row, source, DTYPE: tl.constexpr, RELEASED: tl.constexpr):
    base = address.to(tl.pointer_type(DTYPE))
    stride = tl.load(fields + FILTER_STRIDE)
    q = base + row * stride
    p = base + source.to(tl.int64) * stride
    if tl.load(fields + BLEND) == 0:
        _elements(q, p, fields, DTYPE, RELEASED)
    elif tl.load(fields + DENSE) == 1:
        _blend_run(q, p, tl.load(fields + ROW), DTYPE)
    else:
        _blend_strided(q, p, fields, DTYPE)


@triton.jit
def _blend_run(q, p, length, DTYPE: tl.constexpr):
    """Blend filters that fill runs of memory, in whatever order."""
    ACC: tl.constexpr = tl.float64 if DTYPE == tl.float64 else tl.float32
    norm_q = tl.zeros((RUN,), ACC)
    norm_p = tl.zeros((RUN,), ACC)
    start = length * 0
    while start < length:
        index = start + tl.arange(0, RUN)
        norm_q += magnitude(widen(tl.load(q + index, mask=index < length, other=0.0), DTYPE), DTYPE)
        norm_p += magnitude(widen(tl.load(p + index, mask=index < length, other=0.0), DTYPE), DTYPE)
        start += RUN
    own = tl.sum(norm_q, axis=0)
    a = divide(own, own + tl.sum(norm_p, axis=0), ACC)
    start = length * 0
    while start < length:
        index = start + tl.arange(0, RUN)
        _blend_tile(q + index, p + index, index < length, a, DTYPE)
        start += RUN


@triton.jit
def _blend_strided(q, p, fields, DTYPE: tl.constexpr):
    ACC: tl.constexpr = tl.float64 if DTYPE == tl.float64 else tl.float32
    channels = tl.load(fields + CHANNELS)
    channel_stride = tl.load(fields + CHANNEL_STRIDE)
    elements = _kernel_size(fields)
    norm_q = tl.zeros((TILE_CHANNELS, TILE_ELEMENTS), ACC)
    norm_p = tl.zeros((TILE_CHANNELS, TILE_ELEMENTS), ACC)
    first = channels * 0
    while first < channels:
        channel = first + tl.arange(0, TILE_CHANNELS)
        start = elements * 0
        while start < elements:
            element = start + tl.arange(0, TILE_ELEMENTS)
            offset = (channel * channel_stride)[:, None] + kernel_offsets(fields, element)[None, :]
            mask = (channel < channels)[:, None] & (element < elements)[None, :]
            norm_q += magnitude(widen(tl.load(q + offset, mask=mask, other=0.0), DTYPE), DTYPE)
            norm_p += magnitude(widen(tl.load(p + offset, mask=mask, other=0.0), DTYPE), DTYPE)
            start += TILE_ELEMENTS
        first += TILE_CHANNELS
    own = tl.sum(tl.sum(norm_q, axis=1), axis=0)
    a = divide(own, own + tl.sum(tl.sum(norm_p, axis=1), axis=0), ACC)
    first = channels * 0
    while first < channels:
        channel = first + tl.arange(0, TILE_CHANNELS)
        start = elements * 0
        while start < elements:
            element = start + tl.arange(0, TILE_ELEMENTS)
            offset = (channel * channel_stride)[:, None] + kernel_offsets(fields, element)[None, :]
            mask = (channel < channels)[:, None] & (element < elements)[None, :]
            _blend_tile(q + offset, p + offset, mask, a, DTYPE)
            start += TILE_ELEMENTS
        first += TILE_CHANNELS


@triton.jit
def _blend_tile(q, p, mask, a, DTYPE: tl.constexpr):
    own = widen(tl.load(q, mask=mask, other=0.0), DTYPE)
    other = widen(tl.load(p, mask=mask, other=0.0), DTYPE)
    _store_finite(q, a * own + (1.0 - a) * other, mask, DTYPE)


@triton.jit
def _store_finite(pointer, new, mask, DTYPE: tl.constexpr):
    """A value that is not finite in the weights' dtype is dropped, so the element keeps its own."""
    rounded = narrow(new, DTYPE)
    finite = (magnitude(new, DTYPE) < float("inf")) & (magnitude(widen(rounded, DTYPE), DTYPE) < float("inf"))
    tl.store(pointer, rounded, mask=mask & finite)


@triton.jit
def _elements(q, p, fields, DTYPE: tl.constexpr, RELEASED: tl.constexpr):
    """Element crossover, TILE_CHANNELS kernels at a time.

    The smallest and the largest magnitude are found on the integer bits, which order like the values; then the first
    element that has them, packed with its sign, so that nothing is read again after a write.
    """
    ACC: tl.constexpr = tl.float64 if DTYPE == tl.float64 else tl.float32
    BITS: tl.constexpr = tl.int64 if DTYPE == tl.float64 else tl.int32
    SIGN: tl.constexpr = 63 if DTYPE == tl.float64 else 31
    TOP: tl.constexpr = 0x7FFFFFFFFFFFFFFF if DTYPE == tl.float64 else 0x7FFFFFFF
    channels = tl.load(fields + CHANNELS)
    channel_stride = tl.load(fields + CHANNEL_STRIDE)
    elements = _kernel_size(fields)
    first = channels * 0
    while first < channels:
        channel = first + tl.arange(0, TILE_CHANNELS)
        inside = channel < channels
        small = tl.full((TILE_CHANNELS,), TOP, BITS)
        large = tl.full((TILE_CHANNELS,), -1, BITS)
        small_code = tl.zeros((TILE_CHANNELS,), tl.int32)
        large_code = tl.zeros((TILE_CHANNELS,), tl.int32)
        start = elements * 0
        while start < elements:
            element = start + tl.arange(0, TILE_ELEMENTS)
            offset = (channel * channel_stride)[:, None] + kernel_offsets(fields, element)[None, :]
            mask = inside[:, None] & (element < elements)[None, :]
            own = widen(tl.load(q + offset, mask=mask, other=0.0), DTYPE)
            other = widen(tl.load(p + offset, mask=mask, other=0.0), DTYPE)

            own_bits = own.to(BITS, bitcast=True)
            code = element[None, :] * 2 + (own_bits < 0).to(tl.int32)
            # As in the reference, a NaN is the smallest of its kernel (and the largest, which its bits are).
            size = tl.where(own == own, own_bits & TOP, -1)
            size = tl.where(mask, size, TOP)
            least = tl.min(size, axis=1)
            least_code = tl.min(tl.where(size == least[:, None], code, LAST), axis=1)
            small_code = tl.where(least < small, least_code, small_code)
            small = tl.minimum(least, small)

            other_bits = other.to(BITS, bitcast=True)
            code = element[None, :] * 2 + (other_bits < 0).to(tl.int32)
            size = tl.where(mask, other_bits & TOP, -1)
            most = tl.max(size, axis=1)
            most_code = tl.min(tl.where(size == most[:, None], code, LAST), axis=1)
            large_code = tl.where(most > large, most_code, large_code)
            large = tl.maximum(most, large)
            start += TILE_ELEMENTS

        # Signs by their bits: in Triton 3.6 minus is 0 - x, which loses the sign of zero.
        s = (small | ((small_code % 2).to(BITS) << SIGN)).to(ACC, bitcast=True)
        l = (large | ((large_code % 2).to(BITS) << SIGN)).to(ACC, bitcast=True)  # noqa: E741  (the paper's name)
        if RELEASED:
            a = divide(s, s + l, ACC)
            new = a * l + (1.0 - a) * s
            start = elements * 0
            while start < elements:
                element = start + tl.arange(0, TILE_ELEMENTS)
                offset = (channel * channel_stride)[:, None] + kernel_offsets(fields, element)[None, :]
                mask = inside[:, None] & (element < elements)[None, :]
                own = widen(tl.load(q + offset, mask=mask, other=0.0), DTYPE)
                equal = mask & (own == s[:, None])
                _store_finite(q + offset, tl.broadcast_to(new[:, None], equal.shape), equal, DTYPE)
                start += TILE_ELEMENTS
        else:
            a = divide(magnitude(s, DTYPE), magnitude(s, DTYPE) + magnitude(l, DTYPE), ACC)
            new = a * s + (1.0 - a) * l
            target = q + channel * channel_stride + kernel_offsets(fields, small_code // 2)
            _store_finite(target, new, inside, DTYPE)
        first += TILE_CHANNELS


@triton.jit
def _kernel_size(fields):
    return (tl.load(fields + KERNEL0) * tl.load(fields + KERNEL1) * tl.load(fields + KERNEL2)).to(tl.int32)
