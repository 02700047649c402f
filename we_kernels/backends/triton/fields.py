"""Columns of the device tables, as compile-time constants, and small functions that several kernels share."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# ruff: noqa: SIM300  (compile-time constants are named in capitals, and stand on the left)

import triton
import triton.language as tl

from ...layout import DTYPES, Layer

EXTRA_FIELDS = ("row", "dense", "run")
"""Columns after those of `Layer`: elements of a filter; 1 if they lie in one gapless run of memory, in any order; 1 if
those of the whole tensor do."""

_NAMES = (*Layer._fields, *EXTRA_FIELDS)


def _column(name: str) -> tl.constexpr:
    return tl.constexpr(_NAMES.index(name))


WIDTH = tl.constexpr(len(_NAMES))
FILTERS = _column("filters")
CHANNELS = _column("channels")
KERNEL0 = _column("kernel0")
KERNEL1 = _column("kernel1")
KERNEL2 = _column("kernel2")
FILTER_STRIDE = _column("filter_stride")
CHANNEL_STRIDE = _column("channel_stride")
STRIDE0 = _column("stride0")
STRIDE1 = _column("stride1")
STRIDE2 = _column("stride2")
DTYPE_INDEX = _column("dtype")
BLEND = _column("blend")
GROUP = _column("group")
FIRST_FILTER = _column("first_filter")
ROW = _column("row")
DENSE = _column("dense")
RUN = _column("run")

TRITON_DTYPES = (tl.float32, tl.float64, tl.float16, tl.bfloat16)
"""In the order of `layout.DTYPES`."""
assert [str(dtype).removeprefix("torch.") for dtype in DTYPES] == ["float32", "float64", "float16", "bfloat16"]

LARGEST_FINITE = tl.constexpr(0x7F7FFFFF)
"""Bits of the largest finite float32."""


@triton.jit
def sort_key(importance):
    """int32 that orders non-negative float32 like their values; -0.0 is 0, other negatives have negative keys."""
    bits = importance.to(tl.int32, bitcast=True)
    return tl.where(importance == 0, 0, bits)


@triton.jit
def is_larger(a, b):
    """int32: 1 where key a > b, for finite importances or -1. A sign bit adds up in fewer instructions than a bool."""
    return ((b - a).to(tl.uint32) >> 31).to(tl.int32)


@triton.jit
def load_keys(importance, members, index, start, total, base):
    """Sort keys of a layer's or group's filters; -1, which is larger than none, past the end.

    They are consecutive from ``base`` on, or else in ``members`` from ``start`` on.
    """
    inside = index < total
    member = tl.load(members + start + index, mask=index < tl.where(base < 0, total, 0), other=0)
    key = sort_key(tl.load(importance + tl.where(base < 0, member, base + index), mask=inside, other=0.0))
    return tl.where(inside, key, -1)


@triton.jit
def widen(x, DTYPE: tl.constexpr):
    """To the dtype that sums run in. bfloat16 goes by its bits: the interpreter's conversion loses subnormals."""
    if DTYPE == tl.bfloat16:
        wide = (x.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    elif DTYPE == tl.float64:
        wide = x
    else:
        wide = x.to(tl.float32)
    return wide


@triton.jit
def magnitude(x, DTYPE: tl.constexpr):
    """|x| of a widened value by its bits: the compiled abs of Triton 3.3 flushes subnormals."""
    if DTYPE == tl.float64:
        positive = (x.to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF).to(tl.float64, bitcast=True)
    else:
        positive = (x.to(tl.int32, bitcast=True) & 0x7FFFFFFF).to(tl.float32, bitcast=True)
    return positive


@triton.jit
def narrow(x, DTYPE: tl.constexpr):
    """Back to the weights' dtype, to nearest even, finite values only (the interpreter's own bfloat16 truncates)."""
    if DTYPE == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        rounded = (bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        rounded = x.to(DTYPE)
    return rounded


@triton.jit
def divide(a, b, DTYPE: tl.constexpr):
    """Correctly rounded: compiled ``/`` is approximate in float32."""
    if DTYPE == tl.float64:
        quotient = a / b
    else:
        quotient = tl.div_rn(a, b)
    return quotient


@triton.jit
def kernel_offsets(fields, element):
    """int64 offsets of elements of a kernel, given by their row-major index (int32)."""
    size1 = tl.load(fields + KERNEL1).to(tl.int32)
    size2 = tl.load(fields + KERNEL2).to(tl.int32)
    upper = element // size2
    offset2 = (element % size2).to(tl.int64) * tl.load(fields + STRIDE2)
    offset1 = (upper % size1).to(tl.int64) * tl.load(fields + STRIDE1)
    return (upper // size1).to(tl.int64) * tl.load(fields + STRIDE0) + offset1 + offset2


@triton.jit
def element_offsets(fields, index):
    """int64 offsets of elements of a tensor, given by their number: filter by filter, channel by channel (int64)."""
    row = tl.load(fields + ROW)
    elements = (tl.load(fields + KERNEL0) * tl.load(fields + KERNEL1) * tl.load(fields + KERNEL2)).to(tl.int64)
    within = index % row
    offset = (index // row) * tl.load(fields + FILTER_STRIDE) + (within // elements) * tl.load(fields + CHANNEL_STRIDE)
    return offset + kernel_offsets(fields, (within % elements).to(tl.int32))
