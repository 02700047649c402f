"""Random numbers from counters, as `runtime.philox` makes them in PyTorch."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

import triton
import triton.language as tl


@triton.jit
def philox(element, stream, step, seed):
    """The first number of Philox4x32-10 (Salmon et al. 2011), 0 to 2^32 - 1 as int64.

    Of every ``element``; ``stream``, ``step`` and ``seed`` are one for all.
    """
    c0 = element.to(tl.uint32)
    c1 = c0 * 0 + stream.to(tl.uint32)
    c2 = c0 * 0 + (step & 0xFFFFFFFF).to(tl.uint32)
    c3 = c0 * 0 + ((step >> 32) & 0xFFFFFFFF).to(tl.uint32)
    k0 = (seed & 0xFFFFFFFF).to(tl.uint32)
    k1 = ((seed >> 32) & 0xFFFFFFFF).to(tl.uint32)
    for _ in tl.static_range(10):
        a = c0.to(tl.uint64) * 0xD2511F53
        b = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (b >> 32).to(tl.uint32) ^ c1 ^ k0
        c1 = b.to(tl.uint32)
        c2 = (a >> 32).to(tl.uint32) ^ c3 ^ k1
        c3 = a.to(tl.uint32)
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0.to(tl.int64)
