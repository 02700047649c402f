"""Overwrite inferior filters with a combination of theirs and their donors' elements."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl

from ...runtime.triton.fields import (
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
    STRIDE0,
    STRIDE1,
    STRIDE2,
    WIDTH,
    kernel_offsets,
)
from ...runtime.triton.launch import kernel
from ...runtime.triton.values import FLUSHES, divide, magnitude, narrow, widen

PROGRAMS = 8192
"""Of one launch for matches; each takes several in turn. As many as are there at once, twice over."""

FILTER_PROGRAMS = 32768
"""Of one launch for given donors, most of which find a filter without one."""

PART = 128
"""Kernels of a filter that one program takes, four for each lane. The longest filter is what a launch waits for."""
MOST_PARTS = 2
"""Programs that share a filter. More would find their match too often for what they do with it."""

WARPS = 1
"""Of a program: what lanes find is then combined by shuffles, without shared memory and barriers."""

SEARCH = 256
"""Layers looked at together for a match's."""

LANES = tl.constexpr(32)
"""Of a warp; each takes a kernel of its own."""
UNROLL = tl.constexpr(9)
"""Elements that a lane loads before it compares them: a 3x3 kernel."""
ROW_AT_ONCE = tl.constexpr(512)
"""Filters up to this length (half of it for float64) are blended with one read of every element."""
UNALIGNED = tl.constexpr(256)
"""Elements at a time of longer filters that no vector fits."""
TILE_CHANNELS, TILE_ELEMENTS = tl.constexpr(32), tl.constexpr(4)
LAST = tl.constexpr(0x7FFFFFFF)
"""Larger than every number of a match."""


def max_registers(dtype: int, released: bool) -> int:
    """Of a thread, for an index in `layout.DTYPES`: few, for many warps at once, but not so few that they spill.

    ResNet-50 in float32 on an H200: 16.7 us with 64, 20.1 us with 80. Divisions in float64 need more.
    """
    return 64 if dtype == 0 and not released and not FLUSHES.value else 96


def parts_of(kernels: int) -> int:
    """How many programs share filters of up to so many kernels."""
    return min(-(-kernels // PART), MOST_PARTS)


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
    """For given donors: program i takes filters i, i + programs, ..., counted from the last.

    Donors outside of the layer count as -1.
    """
    filter = filters_in_bank.to(tl.int64) - 1 - tl.program_id(0)
    while filter >= 0:
        source = tl.load(donor + filter)
        if source >= 0:
            layer = tl.load(layer_of_filter + filter)
            fields = layers + layer * WIDTH
            if (tl.load(fields + DTYPE_INDEX) == INDEX) & (source < tl.load(fields + FILTERS)):
                row = filter - tl.load(fields + FIRST_FILTER)
                _cross(tl.load(pointers + layer), fields, row, source, 0, 1, DTYPE, RELEASED)
        filter -= tl.num_programs(0)


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
    parts,
    DTYPE: tl.constexpr,
    INDEX: tl.constexpr,
    RELEASED: tl.constexpr,
    SEARCH: tl.constexpr,
):
    """For matches still to be read off the ranking, each in ``parts``: program i takes parts i, i + programs, ...

    Counted from the last match: the deeper layers of a network have the larger filters, which had better start first.
    Writes donor.
    """
    end = tl.load(first_match + num_layers)
    number = tl.program_id(0)
    while number < end * parts:
        match = end - 1 - number // parts
        part = number % parts
        slot = _slot_of(match, first_match, num_layers, SEARCH)
        layer = tl.load(slots + slot)
        fields = layers + layer * WIDTH
        if tl.load(fields + DTYPE_INDEX) == INDEX:
            start = tl.load(fields + FIRST_FILTER)
            k = match - tl.load(first_match + slot)
            filters = tl.load(fields + FILTERS)
            dominant = filters - tl.load(inferior + layer)
            source = tl.load(order + start + k)
            row = tl.load(order + start + dominant + k).to(tl.int64)
            # Weights that change while they are ranked leave places of `order` unwritten.
            if (source >= 0) & (source < filters) & (row >= 0) & (row < filters):
                tl.store(donor + start + row, source, mask=part == 0)
                _cross(tl.load(pointers + layer), fields, row, source, part, parts, DTYPE, RELEASED)
        number += tl.num_programs(0)


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
def _cross(address, fields, row, source, part, parts, DTYPE: tl.constexpr, RELEASED: tl.constexpr):
    """Part ``part`` of ``parts`` of a filter's kernels; a blend, which needs the norm of them all, is all in part 0."""
    size: tl.constexpr = 8 if DTYPE == tl.float64 else (4 if DTYPE == tl.float32 else 2)
    stride = tl.load(fields + FILTER_STRIDE) * size
    q = address + row * stride
    p = address + source.to(tl.int64) * stride
    if tl.load(fields + BLEND) == 0:
        _elements(q, p, fields, part, parts, DTYPE, RELEASED)
    elif part > 0:
        pass
    elif tl.load(fields + DENSE) == 1:
        _blend_run(q, p, tl.load(fields + ROW), DTYPE)
    else:
        _blend_strided(q.to(tl.pointer_type(DTYPE)), p.to(tl.pointer_type(DTYPE)), fields, DTYPE)


@triton.jit
def _blend_run(q, p, length, DTYPE: tl.constexpr):
    """Blend filters (addresses) that fill runs of memory, in whatever order."""
    size: tl.constexpr = 8 if DTYPE == tl.float64 else (4 if DTYPE == tl.float32 else 2)
    vector: tl.constexpr = 16 // size
    at_once: tl.constexpr = ROW_AT_ONCE // 2 if DTYPE == tl.float64 else ROW_AT_ONCE
    if (q | p | (length * size)) % 16 == 0:
        if length <= LANES * vector:
            _blend_at_once(q, p, length, LANES * vector, vector, DTYPE)
        elif length <= at_once:
            _blend_at_once(q, p, length, at_once, vector, DTYPE)
        else:
            _blend_twice(q, p, length, at_once, vector, DTYPE)
    elif length <= LANES:
        _blend_at_once(q, p, length, LANES, 1, DTYPE)
    else:
        _blend_twice(q, p, length, UNALIGNED, 1, DTYPE)


@triton.jit
def _run(address, length, VECTOR: tl.constexpr, DTYPE: tl.constexpr):
    """The run's pointer and length; with ``VECTOR`` the compiler knows that the address is a multiple of 16 bytes."""
    base = address.to(tl.pointer_type(DTYPE))
    if VECTOR > 1:
        # Dividing and multiplying tells the compiler; a hint on the loaded value would reach the other branch, too.
        base = tl.multiple_of(base, 16)
        length = length // VECTOR * VECTOR
    return base, length


@triton.jit
def _blend_at_once(q, p, length, SIZE: tl.constexpr, VECTOR: tl.constexpr, DTYPE: tl.constexpr):
    """Both rows stay in registers between the norms and the blend."""
    ACC: tl.constexpr = tl.float64 if DTYPE == tl.float64 else tl.float32
    q, length = _run(q, length, VECTOR, DTYPE)
    p, _ = _run(p, length, VECTOR, DTYPE)
    index = length * 0 + tl.arange(0, SIZE)
    own = tl.load(q + index, mask=index < length, other=0.0)
    other = tl.load(p + index, mask=index < length, other=0.0)
    norm = tl.sum(magnitude(widen(own, DTYPE), DTYPE), axis=0)
    a = divide(norm, norm + tl.sum(magnitude(widen(other, DTYPE), DTYPE), axis=0), ACC)
    tl.store(q + index, _blended(own, other, a, DTYPE), mask=index < length)


@triton.jit
def _blend_twice(q, p, length, SIZE: tl.constexpr, VECTOR: tl.constexpr, DTYPE: tl.constexpr):
    """Both rows are read for the norms, and again for the blend."""
    ACC: tl.constexpr = tl.float64 if DTYPE == tl.float64 else tl.float32
    q, length = _run(q, length, VECTOR, DTYPE)
    p, _ = _run(p, length, VECTOR, DTYPE)
    norm_q = tl.zeros((SIZE,), ACC)
    norm_p = tl.zeros((SIZE,), ACC)
    start = length * 0
    while start * SIZE < length:
        index = start * SIZE + tl.arange(0, SIZE)
        x = tl.load(q + index, mask=index < length, other=0.0)
        y = tl.load(p + index, mask=index < length, other=0.0)
        norm_q += magnitude(widen(x, DTYPE), DTYPE)
        norm_p += magnitude(widen(y, DTYPE), DTYPE)
        start += 1
    norm = tl.sum(norm_q, axis=0)
    a = divide(norm, norm + tl.sum(norm_p, axis=0), ACC)
    start = length * 0
    while start * SIZE < length:
        index = start * SIZE + tl.arange(0, SIZE)
        x = tl.load(q + index, mask=index < length, other=0.0)
        y = tl.load(p + index, mask=index < length, other=0.0)
        tl.store(q + index, _blended(x, y, a, DTYPE), mask=index < length)
        start += 1


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
            x = tl.load(q + offset, mask=mask, other=0.0)
            y = tl.load(p + offset, mask=mask, other=0.0)
            tl.store(q + offset, _blended(x, y, a, DTYPE), mask=mask)
            start += TILE_ELEMENTS
        first += TILE_CHANNELS


@triton.jit
def _blended(own, other, a, DTYPE: tl.constexpr):
    """In the weights' dtype. An element is kept by writing its own bits: a store masked by element is no vector's."""
    new = a * widen(own, DTYPE) + (1.0 - a) * widen(other, DTYPE)
    rounded = narrow(new, DTYPE)
    return tl.where(_finite(new, rounded, DTYPE), rounded, own)


@triton.jit
def _finite(new, rounded, DTYPE: tl.constexpr):
    """A value that is not finite in the weights' dtype is dropped, so the element keeps its own."""
    return (magnitude(new, DTYPE) < float("inf")) & (magnitude(widen(rounded, DTYPE), DTYPE) < float("inf"))


@triton.jit
def _elements(q, p, fields, part, parts, DTYPE: tl.constexpr, RELEASED: tl.constexpr):
    """Element crossover: every lane searches a kernel of its own, one element after the other.

    Lanes then compare only what is in their registers. Their loads are a kernel apart, but the sectors that the first
    touches are used up by those after it, from the cache.
    """
    if (tl.load(fields + KERNEL0) * tl.load(fields + KERNEL1) == 1) & (tl.load(fields + STRIDE2) == 1):
        _kernels(q, p, fields, part, parts, True, DTYPE, RELEASED)
    else:
        _kernels(q, p, fields, part, parts, False, DTYPE, RELEASED)


@triton.jit
def _kernels(q, p, fields, part, parts, CONTIGUOUS: tl.constexpr, DTYPE: tl.constexpr, RELEASED: tl.constexpr):
    ACC: tl.constexpr = tl.float64 if DTYPE == tl.float64 else tl.float32
    channels = tl.load(fields + CHANNELS)
    channel_stride = tl.load(fields + CHANNEL_STRIDE)
    first = channels * 0 + part * LANES
    while first < channels:
        channel = first + tl.arange(0, LANES)
        inside = channel < channels
        own = q.to(tl.pointer_type(DTYPE)) + channel * channel_stride
        other = p.to(tl.pointer_type(DTYPE)) + channel * channel_stride
        s, at, l = _extremes(own, other, inside, fields, CONTIGUOUS, DTYPE)  # noqa: E741  (the paper's name)
        if RELEASED:
            a = divide(s, s + l, ACC)
            _replace_equals(own, s, a * l + (1.0 - a) * s, inside, fields, CONTIGUOUS, DTYPE)
        else:
            a = divide(magnitude(s, DTYPE), magnitude(s, DTYPE) + magnitude(l, DTYPE), ACC)
            new = a * s + (1.0 - a) * l
            rounded = narrow(new, DTYPE)
            tl.store(own + at.to(tl.int64), rounded, mask=inside & _finite(new, rounded, DTYPE))
        first += parts * LANES


@triton.jit
def _extremes(own, other, inside, fields, CONTIGUOUS: tl.constexpr, DTYPE: tl.constexpr):
    """For each kernel: the first element of least magnitude of ``own``, its offset, the first of largest of ``other``.

    Magnitudes are compared by their integer bits, which order like the values.
    """
    ACC: tl.constexpr = tl.float64 if DTYPE == tl.float64 else tl.float32
    BITS: tl.constexpr = tl.int64 if DTYPE == tl.float64 else tl.int32
    TOP: tl.constexpr = 0x7FFFFFFFFFFFFFFF if DTYPE == tl.float64 else 0x7FFFFFFF
    rows, length, stride = _rows_of_kernel(fields, CONTIGUOUS)
    end = tl.where(inside, length, 0)
    least = tl.full((LANES,), TOP, BITS)
    most = tl.full((LANES,), -1, BITS)
    s = tl.zeros((LANES,), ACC)
    l = tl.zeros((LANES,), ACC)  # noqa: E741
    at = tl.zeros((LANES,), tl.int32 if CONTIGUOUS else tl.int64)
    row = rows * 0
    while row < rows:
        row_offset = _row_offset(fields, row, CONTIGUOUS)
        start = length * 0
        while start < length:
            offset = row_offset + start.to(tl.int64) * stride
            left = end - start
            for step in tl.static_range(UNROLL):
                mask = left > step
                x = widen(tl.load(own + offset + step * stride, mask=mask), DTYPE)
                # As in the reference, a NaN is the smallest of its kernel (and the largest, which its bits are).
                size = tl.where(x == x, x.to(BITS, bitcast=True) & TOP, -1)
                better = mask & (size < least)
                least = tl.where(better, size, least)
                s = tl.where(better, x, s)
                at = tl.where(better, start + step if CONTIGUOUS else offset + step * stride, at)

                y = widen(tl.load(other + offset + step * stride, mask=mask), DTYPE)
                size = y.to(BITS, bitcast=True) & TOP
                better = mask & (size > most)
                most = tl.where(better, size, most)
                l = tl.where(better, y, l)  # noqa: E741
            start += UNROLL
        row += 1
    return s, at, l


@triton.jit
def _replace_equals(own, s, new, inside, fields, CONTIGUOUS: tl.constexpr, DTYPE: tl.constexpr):
    """The released rule: every element equal to ``s`` becomes ``new``."""
    rounded = narrow(new, DTYPE)
    rows, length, stride = _rows_of_kernel(fields, CONTIGUOUS)
    end = tl.where(inside & _finite(new, rounded, DTYPE), length, 0)
    row = rows * 0
    while row < rows:
        row_offset = _row_offset(fields, row, CONTIGUOUS)
        start = length * 0
        while start < length:
            offset = row_offset + start.to(tl.int64) * stride
            left = end - start
            for step in tl.static_range(UNROLL):
                place = own + offset + step * stride
                mask = left > step
                x = widen(tl.load(place, mask=mask), DTYPE)
                tl.store(place, rounded, mask=mask & (x == s))
            start += UNROLL
        row += 1


@triton.jit
def _rows_of_kernel(fields, CONTIGUOUS: tl.constexpr):
    """A kernel's rows, their length (both int32), and the one stride (int64) from element to element of a row."""
    length = tl.load(fields + KERNEL2).to(tl.int32)
    rows = length * 0 + 1
    stride = tl.full((), 1, tl.int64)
    if not CONTIGUOUS:
        rows = (tl.load(fields + KERNEL0) * tl.load(fields + KERNEL1)).to(tl.int32)
        stride = tl.load(fields + STRIDE2)
    return rows, length, stride


@triton.jit
def _row_offset(fields, row, CONTIGUOUS: tl.constexpr):
    """int64."""
    offset = row.to(tl.int64)
    if not CONTIGUOUS:
        size1 = tl.load(fields + KERNEL1).to(tl.int32)
        offset = (row // size1).to(tl.int64) * tl.load(fields + STRIDE0)
        offset += (row % size1).to(tl.int64) * tl.load(fields + STRIDE1)
    return offset


@triton.jit
def _kernel_size(fields):
    return (tl.load(fields + KERNEL0) * tl.load(fields + KERNEL1) * tl.load(fields + KERNEL2)).to(tl.int32)
