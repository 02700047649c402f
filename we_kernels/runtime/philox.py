"""Random numbers from counters, in PyTorch: the same on every backend, device and rank, and nothing is stored."""

from __future__ import annotations

from torch import Tensor

LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor, seed: int) -> Tensor:
    """The first of the four numbers, 0 to 2^32 - 1, of Philox4x32-10 (Salmon et al. 2011); counters as int64."""
    k0, k1 = seed & LOW, seed >> 32 & LOW
    for _ in range(10):
        # Products of 64 bits wrap in int64, which keeps all of them.
        a, b = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (b >> 32 & LOW) ^ c1 ^ k0, b & LOW, (a >> 32 & LOW) ^ c3 ^ k1, a & LOW
        k0, k1 = k0 + _WEYL[0] & LOW, k1 + _WEYL[1] & LOW
    return c0
