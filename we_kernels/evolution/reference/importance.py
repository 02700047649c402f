"""Importance of every filter: its L1 norm divided by its number of kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from ...runtime.filters import accumulate_dtype, divided, filters_first
from ...runtime.view import BankView


def filter_importance(bank: BankView) -> Tensor:
    """float32 [F]; float64 weights are summed in float64, all others in float32."""
    return torch.cat(
        [
            divided(l1_norm(filters_first(weight, dim)), layer.channels).float()
            for weight, dim, layer in zip(bank.weights, bank.filter_dims, bank.layout.layers, strict=True)
        ]
    )


def l1_norm(filters: Tensor) -> Tensor:
    """Sum of magnitudes of each filter, accumulated in float32 or wider: [N, ...] -> [N]."""
    # torch.linalg.vector_norm takes several times as long on a CPU.
    return filters.abs().sum(tuple(range(1, filters.dim())), dtype=accumulate_dtype(filters))
