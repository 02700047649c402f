"""Importances as integers that order like them."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl


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
