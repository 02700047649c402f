"""Overlap of the filters of a layer: |cosine| of every pair."""

from __future__ import annotations

import torch
from torch import Tensor

from ..runtime.filters import accumulate_dtype, filters_first
from ..runtime.view import BankView

TILE = 256
"""Filters on each side of a tile of cosines: 256 KiB of float32, which stays in the caches."""


def filter_overlap(bank: BankView) -> tuple[Tensor, Tensor]:
    """Mean over the pairs of each layer, float32 [L], and each filter's maximum, float32 [F]."""
    layout, device = bank.layout, bank.device
    mean = torch.zeros(len(bank.weights), dtype=torch.float64, device=device)
    maximum = torch.zeros(layout.num_filters, dtype=torch.float32, device=device)
    for i, (weight, dim, layer) in enumerate(zip(bank.weights, bank.filter_dims, layout.layers, strict=True)):
        own = maximum[layer.first_filter : layer.first_filter + layer.filters]
        _add_tiles(filters_first(weight, dim), mean[i], own)
        mean[i] /= max(layer.filters * (layer.filters - 1) // 2, 1)
    return mean.float(), maximum


def _add_tiles(filters: Tensor, total: Tensor, maximum: Tensor) -> None:
    """Only tiles on or above the diagonal of the (never formed) matrix of cosines."""
    for i in range(0, len(filters), TILE):
        rows = _unit(filters[i : i + TILE])
        for j in range(i, len(filters), TILE):
            columns = rows if i == j else _unit(filters[j : j + TILE])
            cosine = (rows @ columns.T).abs_().clamp_(max=1)
            if i == j:
                cosine.fill_diagonal_(0)
            total += cosine.sum(dtype=torch.float64) / (2 if i == j else 1)
            for start, largest in ((i, cosine.amax(1)), (j, cosine.amax(0))):
                part = maximum[start : start + TILE]
                torch.maximum(part, largest.float(), out=part)


def _unit(filters: Tensor) -> Tensor:
    """Rows of length 1; zeros stay zeros. Divided by the largest magnitude first, so that no square overflows."""
    rows = filters.flatten(1).to(accumulate_dtype(filters))
    largest = rows.abs().amax(1, keepdim=True)
    rows = rows / torch.where(largest == 0, 1, largest)
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return rows / torch.where(norm == 0, 1, norm)
