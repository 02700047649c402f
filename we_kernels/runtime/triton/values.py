"""Values of the weights' dtypes, rounded as the reference rounds them."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl

from ..layout import DTYPES

TRITON_DTYPES = (tl.float32, tl.float64, tl.float16, tl.bfloat16)
"""In the order of `layout.DTYPES`."""
assert [str(dtype).removeprefix("torch.") for dtype in DTYPES] == ["float32", "float64", "float16", "bfloat16"]

FLUSHES = tl.constexpr(tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 6))
"""The compiled ``div_rn`` takes subnormals as 0, and returns none (triton-lang/triton#8557)."""

LARGEST_FINITE = tl.constexpr(0x7F7FFFFF)
"""Bits of the largest finite float32."""


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
def round_to(x, DTYPE: tl.constexpr):
    """`narrow`, for NaNs and infinities, too."""
    if DTYPE == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        bits = tl.where(x == x, (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, 0x7FC0)
        rounded = bits.to(tl.int16).to(tl.bfloat16, bitcast=True)
    else:
        rounded = x.to(DTYPE)
    return rounded


@triton.jit
def divide(a, b, DTYPE: tl.constexpr):
    """Correctly rounded: compiled ``/`` is approximate in float32.

    A float32 quotient rounded from float64 is the same one: it is no nearer than 2**-48 to the middle of two values.
    """
    if DTYPE == tl.float64:
        quotient = a / b
    elif FLUSHES:
        quotient = (a.to(tl.float64) / b.to(tl.float64)).to(tl.float32)
    else:
        quotient = tl.div_rn(a, b)
    return quotient


@triton.jit
def square_root(x, DTYPE: tl.constexpr):
    """Correctly rounded; a float32 root rounded from float64 is the same one."""
    if DTYPE == tl.float64:
        root = tl.sqrt(x)
    elif FLUSHES:
        root = tl.sqrt(x.to(tl.float64)).to(tl.float32)
    else:
        root = tl.sqrt_rn(x)
    return root


@triton.jit
def multiply_add(a, b, alpha, DTYPE: tl.constexpr):
    """a + alpha * b as PyTorch's foreach kernels on CUDA: fused, then rounded to the dtype."""
    return widen(round_to(tl.fma(tl.broadcast_to(alpha, b.shape), b, a), DTYPE), DTYPE)
