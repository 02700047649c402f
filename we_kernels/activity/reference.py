"""Sums of absolute activations by channel: all dimensions but one are summed over."""

import torch
from torch import Tensor

from ..runtime.filters import accumulate_dtype


def add_channel_activity_(sums: Tensor, activation: Tensor, dim: int, overwrite: bool) -> None:
    """``sums`` [C], float32 or float64, in place."""
    others = [other for other in range(activation.dim()) if other != dim]
    found = activation
    if len(others) > 1:
        # Reads whatever memory format without a copy, but adds one by one on a CPU: not over all dimensions at once.
        found = torch.linalg.vector_norm(activation, 1, others[1:], dtype=accumulate_dtype(activation))
    found = found.abs()
    if others:
        found = found.sum(1 if dim == 0 else 0, dtype=sums.dtype)
    if overwrite:
        sums.copy_(found)
    else:
        sums.add_(found)
