"""Columns of the table of layers, as compile-time constants, and where elements lie by them."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl

from ..layout import Layer

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
FIRST_FILTER = _column("first_filter")
ROW = _column("row")
DENSE = _column("dense")
RUN = _column("run")


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
