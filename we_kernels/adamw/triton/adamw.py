"""One step of Adam on many parameters, of which rows and columns have their own ages."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl

from ...runtime.triton.fields import WIDTH, element_offsets
from ...runtime.triton.launch import kernel
from ...runtime.triton.values import divide, multiply_add, round_to, square_root, widen

BLOCK = 1024
"""Elements that one program takes."""

STRIP = 256
"""Of them at a time, where they have gaps: a part of BLOCK."""

WARPS = 8

DENSE_REGISTERS = 80
"""That a thread may have: 56 are used, 72 in float64, where the compiler would take fewer and spill."""

ENTRIES = 256
"""Rows and columns that one program of `correction_kernel` takes."""

DIVISORS = ("row_stride", "filters", "column_stride", "channels", "per_group")
"""Each as a multiplier and a shift, `divider`: the five divisions of an element took longer than all of its loads."""

FIELDS = (
    "total",
    "dense",
    "filters",
    "channels",
    "columns",
    "first",
    "kind",
    *(f"{name}_{part}" for name in DIVISORS for part in ("multiplier", "shift")),
)
"""Of a parameter: its elements; whether all tensors lie alike and without gaps; element number e, in the order of
memory if so, else filter by filter, belongs to row ``e // row_stride % filters`` and to channel ``e // column_stride %
channels``; rows of a group (`DIVISORS`); columns; where its corrections begin; how it gets them (`KINDS`)."""

KINDS = ("known", "counted", "aged")
"""The host knows the corrections of all elements; they are on the device; each row and column has its own, behind that
of elements that were never reset."""

TOTAL, DENSE, FILTERS, CHANNELS, COLUMNS, FIRST, KIND = (tl.constexpr(i) for i in range(7))
BY_ROW_STRIDE, BY_FILTERS, BY_COLUMN_STRIDE, BY_CHANNELS, BY_PER_GROUP = (
    tl.constexpr(FIELDS.index(f"{name}_multiplier")) for name in DIVISORS
)
FIELD_COUNT = tl.constexpr(len(FIELDS))
KNOWN, AGED = tl.constexpr(0), tl.constexpr(2)


@kernel
def correction_kernel(
    tiles,
    fields,
    row_resets,
    column_resets,
    counters,
    known,
    steps_on_device,
    on_device,
    lr,
    logarithms,
    corrections,
    corrections_in_all,
    ACC: tl.constexpr,
    ENTRIES: tl.constexpr,
):
    """One program per tile (tensor, first entry): step size and the root's divisor of each row and column.

    In float64, like Python's numbers, then rounded to ``ACC``. ``known``: step, and both corrections at that age, of
    each tensor. ``steps_on_device``: they are there instead; ``on_device``: they or the learning rate are.
    """
    tile = tl.program_id(0).to(tl.int64) * 2
    tensor = tl.load(tiles + tile)
    field = fields + tensor * FIELD_COUNT
    entry = tl.load(tiles + tile + 1) + tl.arange(0, ENTRIES)
    row, column = entry - 1, entry - 1 - tl.load(field + FILTERS).to(tl.int32)
    aged = (tl.load(field + KIND) == AGED).to(tl.int64)
    count = 1 + aged * (tl.load(field + FILTERS) + tl.load(field + COLUMNS))
    rows, columns = tl.load(row_resets + tensor), tl.load(column_resets + tensor)
    reset = tl.zeros((ENTRIES,), tl.float32)
    if rows != 0:
        reset += tl.load(rows.to(tl.pointer_type(tl.float32)) + row, mask=(row >= 0) & (column < 0), other=0.0)
    if columns != 0:
        inside = (column >= 0) & (entry < count)
        reset += tl.load(columns.to(tl.pointer_type(tl.float32)) + column, mask=inside, other=0.0)
    if steps_on_device != 0:
        step = tl.load(tl.load(counters + tensor).to(tl.pointer_type(tl.float32))).to(tl.float64)
    else:
        step = tl.load(known + tensor * 3)
    age = step - reset.to(tl.float64)
    age = tl.where(age > 1, age, 1.0)
    size = tl.load(lr) / (tl.exp(age * tl.load(logarithms)) - 1)
    root = tl.sqrt(1 - tl.exp(age * tl.load(logarithms + 1)))
    if on_device == 0:
        size = tl.where(age == step, tl.load(known + tensor * 3 + 1), size)
        root = tl.where(age == step, tl.load(known + tensor * 3 + 2), root)
    place = corrections.to(tl.pointer_type(ACC)) + tl.load(field + FIRST) + entry
    tl.store(place, size.to(ACC), mask=entry < count)
    tl.store(place + corrections_in_all, root.to(ACC), mask=entry < count)


@kernel
def adamw_kernel(
    parameters,
    grads,
    means,
    squares,
    maxima,
    parameter_layers,
    grad_layers,
    mean_layers,
    square_layers,
    maximum_layers,
    fields,
    tiles,
    known,
    corrections,
    corrections_in_all,
    lr,
    scalars,
    decay,
    has_maxima,
    maximize,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
    STRIP: tl.constexpr,
    DENSE: tl.constexpr,
):
    """One program per tile (tensor, block of BLOCK elements); rounds like PyTorch's foreach kernels on CUDA.

    ``DENSE``: the tiles are of tensors that lie alike and without gaps; compiled apart, because what others need takes
    twice the registers.

    ``scalars``: share of the gradient in the mean, what is kept of the square, share of the gradient in it, eps, weight
    decay. ``decay``: 0 none, 1 decoupled, 2 added to the gradient.
    """
    tile = tl.program_id(0).to(tl.int64) * 2
    tensor = tl.load(tiles + tile)
    start = tl.load(tiles + tile + 1) * BLOCK
    field = fields + tensor * FIELD_COUNT
    total = tl.load(field + TOTAL).to(tl.int32)
    param, grad = tl.load(parameters + tensor), tl.load(grads + tensor)
    mean, square, maximum = tl.load(means + tensor), tl.load(squares + tensor), tl.load(maxima + tensor)
    p = param.to(tl.pointer_type(DTYPE))
    g = grad.to(tl.pointer_type(DTYPE))
    m = mean.to(tl.pointer_type(DTYPE))
    v = square.to(tl.pointer_type(DTYPE))
    x = maximum.to(tl.pointer_type(DTYPE))
    options = (field, tensor, known, corrections, corrections_in_all, lr, scalars, decay, has_maxima, maximize)
    if DENSE:
        index = start + tl.arange(0, BLOCK)
        if (start + BLOCK <= total) & ((param | grad | mean | square | maximum) % 16 == 0):
            # A mask of ones and hints on the addresses make these vector accesses.
            _step(
                tl.multiple_of(p, 16) + index,
                tl.multiple_of(g, 16) + index,
                tl.multiple_of(m, 16) + index,
                tl.multiple_of(v, 16) + index,
                tl.multiple_of(x, 16) + index,
                index,
                tl.full((BLOCK,), 1, tl.int1),
                options,
                DTYPE,
            )
        else:
            _step(p + index, g + index, m + index, v + index, x + index, index, index < total, options, DTYPE)
    else:
        # One element per thread at a time: the offsets of five tensors take many registers.
        for strip in range(0, BLOCK, STRIP):
            part = start + strip + tl.arange(0, STRIP)
            wide = part.to(tl.int64)
            _step(
                p + element_offsets(parameter_layers + tensor * WIDTH, wide),
                g + element_offsets(grad_layers + tensor * WIDTH, wide),
                m + element_offsets(mean_layers + tensor * WIDTH, wide),
                v + element_offsets(square_layers + tensor * WIDTH, wide),
                x + element_offsets(maximum_layers + tensor * WIDTH, wide),
                part,
                part < total,
                options,
                DTYPE,
            )


@triton.jit
def _step(p, g, m, v, x, index, inside, options, DTYPE: tl.constexpr):
    field, tensor, known, corrections, corrections_in_all, lr, scalars, decay, has_maxima, maximize = options
    ACC: tl.constexpr = tl.float64 if DTYPE == tl.float64 else tl.float32
    BITS: tl.constexpr = tl.int64 if DTYPE == tl.float64 else tl.int32
    SIGN: tl.constexpr = 63 if DTYPE == tl.float64 else 31
    kept = widen(tl.load(p, mask=inside, other=0.0), DTYPE)
    update = widen(tl.load(g, mask=inside, other=0.0), DTYPE)
    # By the bits: in Triton 3.6 minus is 0 - x, which loses the sign of zero.
    update = (update.to(BITS, bitcast=True) ^ (maximize.to(BITS) << SIGN)).to(ACC, bitcast=True)
    if decay == 1:
        share = (1 - tl.load(lr) * tl.load(scalars + 4)).to(ACC)
        kept = widen(round_to(kept * share, DTYPE), DTYPE)
    elif decay == 2:
        update = multiply_add(update, kept, tl.load(scalars + 4).to(ACC), DTYPE)
    mean = widen(tl.load(m, mask=inside, other=0.0), DTYPE)
    weight = tl.load(scalars).to(ACC)
    from_mean = (weight < 0.5) & (weight > -0.5)
    base = tl.where(from_mean, mean, update)
    mean = multiply_add(base, update - mean, tl.where(from_mean, weight, weight - 1), DTYPE)
    tl.store(m, round_to(mean, DTYPE), mask=inside)
    square = widen(tl.load(v, mask=inside, other=0.0), DTYPE)
    square = widen(round_to(square * tl.load(scalars + 1).to(ACC), DTYPE), DTYPE)
    square = multiply_add(square, update * update, tl.load(scalars + 2).to(ACC), DTYPE)
    tl.store(v, round_to(square, DTYPE), mask=inside)
    if has_maxima != 0:
        maximum = widen(tl.load(x, mask=inside, other=0.0), DTYPE)
        square = tl.where((maximum > square) | (maximum != maximum), maximum, square)
        tl.store(x, round_to(square, DTYPE), mask=inside)
    root = widen(round_to(square_root(square, DTYPE), DTYPE), DTYPE)
    size, divisor = _corrections(field, tensor, index, inside, known, corrections, corrections_in_all, ACC)
    root = widen(round_to(divide(root, tl.broadcast_to(divisor, root.shape), DTYPE), DTYPE), DTYPE)
    root = widen(round_to(root + tl.load(scalars + 3).to(ACC), DTYPE), DTYPE)
    tl.store(p, round_to(tl.fma(size, divide(mean, root, DTYPE), kept), DTYPE), mask=inside)


@triton.jit
def _corrections(field, tensor, index, inside, known, corrections, corrections_in_all, ACC: tl.constexpr):
    """Step size and the root's divisor of each element: of the younger of its row and column."""
    kind = tl.load(field + KIND)
    if kind == KNOWN:
        size = tl.zeros(index.shape, ACC) + tl.load(known + tensor * 3 + 1).to(ACC)
        divisor = tl.zeros(index.shape, ACC) + tl.load(known + tensor * 3 + 2).to(ACC)
    else:
        first = corrections.to(tl.pointer_type(ACC)) + tl.load(field + FIRST)
        size = tl.zeros(index.shape, ACC) + tl.load(first)
        divisor = tl.zeros(index.shape, ACC) + tl.load(first + corrections_in_all)
        if kind == AGED:
            filters, channels = tl.load(field + FILTERS).to(tl.int32), tl.load(field + CHANNELS).to(tl.int32)
            row = _quotient(index, field + BY_ROW_STRIDE)
            row -= _quotient(row, field + BY_FILTERS) * filters
            column = _quotient(index, field + BY_COLUMN_STRIDE)
            column -= _quotient(column, field + BY_CHANNELS) * channels
            column += _quotient(row, field + BY_PER_GROUP) * channels
            rows, columns = first + 1 + row, first + 1 + filters + column
            size = tl.minimum(tl.load(rows, mask=inside, other=0.0), tl.load(columns, mask=inside, other=0.0))
            rows += corrections_in_all
            columns += corrections_in_all
            divisor = tl.minimum(tl.load(rows, mask=inside, other=0.0), tl.load(columns, mask=inside, other=0.0))
    return size, divisor


@triton.jit
def _quotient(dividend, divider):
    """int32 from 0, by what lies at ``divider``; see the function of that name."""
    twice = dividend.to(tl.uint32) * 2
    high = tl.umulhi(twice, tl.load(divider).to(tl.uint32))
    return (high >> tl.load(divider + 1).to(tl.uint32)).to(tl.int32)


def divider(divisor: int) -> tuple[int, int]:
    """Multiplier m and shift s: ``n // divisor`` is ``(2 * n * m >> 32) >> s`` for every n from 0 to 2**31 - 1.

    Source: Granlund and Montgomery, "Division by Invariant Integers using Multiplication", PLDI 1994, theorem 4.2.
    """
    shift = (divisor - 1).bit_length()
    return -(-(1 << 31 + shift) // divisor), shift
