"""Importance of every filter: its L1 norm divided by its number of kernels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...layout import Layout


def filter_importance(weights: Sequence[Tensor], filter_dims: Sequence[int], layout: Layout) -> Tensor:
    """float32 [F]; float64 weights are summed in float64, all others in float32."""
    return torch.cat(
        [
            divided(l1_norm(filters_first(weight, dim)), layer.channels).float()
            for weight, dim, layer in zip(weights, filter_dims, layout.layers, strict=True)
        ]
    )


def filters_first(weight: Tensor, filter_dim: int) -> Tensor:
    """A view [N, C, K...] of a weight whose filters lie along ``filter_dim``."""
    filters = weight.movedim(filter_dim, 0)
    return filters.unsqueeze(1) if filters.dim() == 1 else filters


def l1_norm(filters: Tensor) -> Tensor:
    """Sum of magnitudes of each filter, accumulated in float32 or wider: [N, ...] -> [N]."""
    # torch.linalg.vector_norm takes several times as long on a CPU.
    return filters.abs().sum(tuple(range(1, filters.dim())), dtype=accumulate_dtype(filters))


def divided(x: Tensor, by: int) -> Tensor:
    """x / by, correctly rounded on every device: CUDA multiplies by the rounded reciprocal of a Python number."""
    return x / x.new_full((), by)


def accumulate_dtype(tensor: Tensor) -> torch.dtype:
    """float64 for float64, float32 for everything narrower."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
