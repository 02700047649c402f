"""One step of SGD on many parameters, of which some move only in part."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl

from ...runtime.layout import Layer
from ...runtime.triton.fields import CHANNEL_STRIDE, FILTER_STRIDE, KERNEL0, KERNEL1, KERNEL2, kernel_offsets
from ...runtime.triton.launch import kernel
from ...runtime.triton.values import multiply_add, round_to, widen

BLOCK = 1024
"""Elements that one program takes."""

WARPS = 8
"""With 4, the kernels for float16 and bfloat16 spill."""

FIELDS = ("total", "run", "filters", "dense", "first_filter")
"""First columns of the table: elements of the tensor; of a filter side by side; filters; whether parameter, gradient
and buffer lie alike and without gaps; the first filter among the masked ones, or -1. Then each one's `Layer`."""

TOTAL, RUN, FILTERS, DENSE, FIRST = (tl.constexpr(i) for i in range(len(FIELDS)))
WIDTH = tl.constexpr(len(FIELDS) + 3 * len(Layer._fields))
PARAM = tl.constexpr(len(FIELDS))
GRAD = tl.constexpr(len(FIELDS) + len(Layer._fields))
BUFFER = tl.constexpr(len(FIELDS) + 2 * len(Layer._fields))


@kernel
def sgd_kernel(
    parameters,
    grads,
    buffers,
    layouts,
    tiles,
    fresh,
    selected,
    scalars,
    lr,
    decays,
    has_momentum,
    nesterov,
    maximize,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per tile (tensor, block of BLOCK elements); rounds like PyTorch's foreach kernels on CUDA.

    They compute a + alpha * b as a fused multiply-add in float32 (float64 for float64) and round every result to the
    parameters' dtype. ``scalars``: weight decay, momentum and 1 - dampening.
    """
    tile = tl.program_id(0).to(tl.int64) * 2
    tensor = tl.load(tiles + tile)
    start = tl.load(tiles + tile + 1) * BLOCK
    fields = layouts + tensor * WIDTH
    total = tl.load(fields + TOTAL).to(tl.int32)
    param, grad, buffer = tl.load(parameters + tensor), tl.load(grads + tensor), tl.load(buffers + tensor)
    p = param.to(tl.pointer_type(DTYPE))
    g = grad.to(tl.pointer_type(DTYPE))
    m = buffer.to(tl.pointer_type(DTYPE))
    rule = (tl.load(fresh + tensor), scalars, lr, decays, has_momentum, nesterov, maximize)
    index = start + tl.arange(0, BLOCK)
    first = tl.load(fields + FIRST)
    chosen = selected + first
    filters = tl.load(fields + FILTERS).to(tl.int32)
    if tl.load(fields + DENSE) == 1:
        run = tl.load(fields + RUN).to(tl.int32)
        if (start + BLOCK <= total) & ((param | grad | buffer) % 16 == 0):
            # A mask of ones and hints on the addresses make these vector accesses.
            inside = tl.full((BLOCK,), 1, tl.int1)
            moves = inside
            if first >= 0:
                moves = tl.load(chosen + index // run % filters) != 0
            _step(
                tl.multiple_of(p, 16) + index,
                tl.multiple_of(g, 16) + index,
                tl.multiple_of(m, 16) + index,
                inside,
                moves,
                rule,
                DTYPE,
            )
        else:
            inside = index < total
            moves = inside
            if first >= 0:
                moves = tl.load(chosen + index // run % filters, mask=inside, other=0) != 0
            _step(p + index, g + index, m + index, inside, moves, rule, DTYPE)
    else:
        inside = index < total
        row = total // filters
        moves = inside
        if first >= 0:
            moves = tl.load(chosen + index // row, mask=inside, other=0) != 0
        _step(
            p + _offset(fields + PARAM, index, row),
            g + _offset(fields + GRAD, index, row),
            m + _offset(fields + BUFFER, index, row),
            inside,
            moves,
            rule,
            DTYPE,
        )


@triton.jit
def _offset(layer, index, row):
    """Of an element given by its position in the order filter, channel, kernel."""
    elements = (tl.load(layer + KERNEL0) * tl.load(layer + KERNEL1) * tl.load(layer + KERNEL2)).to(tl.int32)
    rest = index % row
    place = (index // row).to(tl.int64) * tl.load(layer + FILTER_STRIDE)
    place += (rest // elements).to(tl.int64) * tl.load(layer + CHANNEL_STRIDE)
    return place + kernel_offsets(layer, rest % elements)


@triton.jit
def _step(p, g, m, inside, moves, rule, DTYPE: tl.constexpr):
    is_fresh, scalars, lr, decays, has_momentum, nesterov, maximize = rule
    ACC: tl.constexpr = tl.float64 if DTYPE == tl.float64 else tl.float32
    BITS: tl.constexpr = tl.int64 if DTYPE == tl.float64 else tl.int32
    SIGN: tl.constexpr = 63 if DTYPE == tl.float64 else 31
    momentum = tl.load(scalars + 1).to(ACC)
    old = tl.load(p, mask=inside, other=0.0)
    wide = widen(old, DTYPE)
    update = widen(tl.load(g, mask=inside, other=0.0), DTYPE)
    # By the bits: in Triton 3.6 minus is 0 - x, which loses the sign of zero.
    update = (update.to(BITS, bitcast=True) ^ (maximize.to(BITS) << SIGN)).to(ACC, bitcast=True)
    if decays != 0:
        update = multiply_add(update, wide, tl.load(scalars).to(ACC), DTYPE)
    if has_momentum != 0:
        moment = update
        if is_fresh == 0:
            before = widen(tl.load(m, mask=inside, other=0.0), DTYPE)
            shrunk = widen(round_to(before * momentum, DTYPE), DTYPE)
            moment = multiply_add(shrunk, update, tl.load(scalars + 2).to(ACC), DTYPE)
        tl.store(m, round_to(moment, DTYPE), mask=inside)
        if nesterov != 0:
            update = multiply_add(update, moment, momentum, DTYPE)
        else:
            update = moment
    # The whole block is stored if any of it moves, so that vectors stay whole; what stays gets the bits it had.
    if tl.sum(moves.to(tl.int32), axis=0) > 0:
        new = round_to(multiply_add(wide, update, -tl.load(lr).to(ACC), DTYPE), DTYPE)
        tl.store(p, tl.where(moves, new, old), mask=inside)
