"""What the kernels of unit reactivation share: a tensor's row of the table of plans, elements, who is revived."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl

from ...runtime.triton.fields import CHANNEL_STRIDE, FILTER_STRIDE, kernel_offsets
from ...runtime.triton.philox import philox

PLAN_FIELDS = (
    "row_start",
    "column_start",
    "row_value",
    "column_value",
    "rows",
    "channels",
    "kernel",
    "group_rows",
    "columns",
    "channels_last",
    "stream",
    "given",
    "mean_first",
    "mean_parts",
    "live_first",
    "live_parts",
)
"""Columns of the table of plans, a row per tensor. Starts: where rows and columns start in the table of units, -1 if
nothing is written for them. ``columns``: of all groups; ``stream``: of random numbers; ``given``: which of the given
numbers. Means and norms of living units: the first of the parts of their sums, and how many there are."""


def _field(name: str) -> tl.constexpr:
    return tl.constexpr(PLAN_FIELDS.index(name))


PLAN_WIDTH = tl.constexpr(len(PLAN_FIELDS))
ROW_START, COLUMN_START, ROW_VALUE, COLUMN_VALUE = map(_field, PLAN_FIELDS[:4])
ROWS, CHANNELS, KERNEL, GROUP_ROWS, COLUMNS, CHANNELS_LAST = map(_field, PLAN_FIELDS[4:10])
STREAM, GIVEN, MEAN_FIRST, MEAN_PARTS, LIVE_FIRST, LIVE_PARTS = map(_field, PLAN_FIELDS[10:])

ENTRIES = tl.constexpr(16)
"""Rows or columns that one program writes or draws for; at most 16, see `nth_bit`."""


@triton.jit
def number(plan, field):
    """One field as int32."""
    return tl.load(plan + field).to(tl.int32)


@triton.jit
def is_revived(unit_table, revived, place, wanted):
    """Of entries of the table of units, given by their places; False where not ``wanted``."""
    unit = tl.load(unit_table + place, mask=wanted, other=-1)
    return tl.load(revived + unit, mask=unit >= 0, other=0) != 0


@triton.jit
def split(index, channels, kernel, channels_last):
    """Channels and elements of their kernels in the order of memory, so that neighbours are written together."""
    if channels_last != 0:
        channel = index % channels
        element = index // channels
    else:
        channel = index // kernel
        element = index % kernel
    return channel, element


@triton.jit
def offsets(layer, row, channel, element):
    """int64, from the first element of a tensor."""
    place = row.to(tl.int64) * tl.load(layer + FILTER_STRIDE) + channel.to(tl.int64) * tl.load(layer + CHANNEL_STRIDE)
    return place + kernel_offsets(layer, element)


@triton.jit
def random_bits(index, stream, step, seed):
    """24 of them as int32, by an element's number in its tensor."""
    return (philox(index, stream, tl.load(step), tl.load(seed)) >> 8).to(tl.int32)


@triton.jit
def nth_bit(bits, n):
    """The place of the n-th set bit of a number below 2^16, counted from 0."""
    rest = n * 0 + bits
    left, rest, half = _halve(n, rest, 8)
    place = half
    left, rest, half = _halve(left, rest, 4)
    place += half
    left, rest, half = _halve(left, rest, 2)
    place += half
    left, rest, half = _halve(left, rest, 1)
    return place + half


@triton.jit
def _halve(n, bits, WIDTH: tl.constexpr):
    """The n-th set bit is one of the lower WIDTH, or those are left behind."""
    below = _count_bits(bits & ((1 << WIDTH) - 1))
    above = n >= below
    return n - tl.where(above, below, 0), tl.where(above, bits >> WIDTH, bits), tl.where(above, WIDTH, 0)


@triton.jit
def _count_bits(byte):
    pairs = byte - ((byte >> 1) & 0x55)
    fours = (pairs & 0x33) + ((pairs >> 2) & 0x33)
    return (fours + (fours >> 4)) & 0x0F
