"""How the formulas in PyTorch see a weight, and the arithmetic that they share."""

from __future__ import annotations

import torch
from torch import Tensor


def filters_first(weight: Tensor, filter_dim: int) -> Tensor:
    """A view [N, C, K...] of a weight whose filters lie along ``filter_dim``."""
    filters = weight.movedim(filter_dim, 0)
    return filters.unsqueeze(1) if filters.dim() == 1 else filters


def divided(x: Tensor, by: int) -> Tensor:
    """x / by, correctly rounded on every device: CUDA multiplies by the rounded reciprocal of a Python number."""
    return x / x.new_full((), by)


def accumulate_dtype(tensor: Tensor) -> torch.dtype:
    """float64 for float64, float32 for everything narrower."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
