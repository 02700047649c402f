"""Fresh weights in PyTorch: what each element of a tensor is drawn as, and how a unit's are scaled."""

from __future__ import annotations

import torch
from torch import Tensor

from ..runtime.philox import LOW, philox

STREAM = 1 << 31
"""Set in the number of a drawn tensor, so that no other operator draws the same numbers from a seed."""

_HALF = 1 << 23


def drawn_values(element: Tensor, number: int, bound: float, seed: int, step: Tensor) -> tuple[Tensor, Tensor]:
    """Uniform in +- ``bound``: float32, and magnitudes as int64, in units of ``bound / 2^23``, of exact sums.

    Args:
        element: int64, the numbers of elements in their tensor.
        number: of the tensor among those that are drawn.
        bound: of the values.
        seed: of all.
        step: int64, of one element or like ``element``.
    """
    stream = torch.full_like(element, number | STREAM)
    bits = philox(element, stream, step & LOW, step >> 32 & LOW, seed) >> 8
    fresh = (bits.double() * 2.0**-23 - 1).float() * torch.tensor(bound, dtype=torch.float32, device="cpu")
    return fresh, (bits - _HALF).abs()


def scales(target: Tensor, magnitudes: Tensor, bound: float) -> Tensor:
    """float32: factors that give units an L1 norm; 1 where it is not above 0 and finite.

    Args:
        target: float64, the norm.
        magnitudes: int64, sums of what `drawn_values` gave for each unit.
        bound: as there.
    """
    wanted = (target > 0) & target.isfinite() & (magnitudes > 0)
    return torch.where(wanted, target / (magnitudes.double() * (bound * 2.0**-23)), 1.0).float()
