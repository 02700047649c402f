"""A Linear's bias follows its rows."""

from __future__ import annotations

import torch
from torch import Tensor


def blended_bias(bias: Tensor, norms: Tensor, donor: Tensor) -> Tensor:
    """The bias [N] with each element that has a donor blended with it, with the coefficient of the rows.

    Args:
        bias: [N], only read.
        norms: float32 [N], of the rows before the crossover, to any scale.
        donor: int32 [N], -1 for none.
    """
    source = donor.clamp(min=0).long()
    a = norms / (norms + norms[source])
    blended = (a * bias + (1 - a) * bias[source]).to(bias.dtype)
    return torch.where((donor >= 0) & blended.isfinite(), blended, bias)
