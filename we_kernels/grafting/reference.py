"""Counts of the bins that a weight's elements fall into, and blends of networks.

Source: Filter Grafting (arXiv 2001.05868), sections 3.2 and 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ..runtime.filters import accumulate_dtype, divided, filters_first
from ..runtime.view import BankView


def count_bins(bank: BankView, bins: int, per_filter: bool) -> Tensor:
    """int64 [F, bins] or [L, bins]: elements of every filter or tensor in each bin; -1: one is not finite."""
    counts = []
    for weight, dim in zip(bank.weights, bank.filter_dims, strict=True):
        filters = filters_first(weight, dim)
        rows = filters.flatten(1) if per_filter else filters.reshape(1, -1)
        counts.append(_count_rows(rows.to(accumulate_dtype(weight)), bins))
    return torch.cat(counts)


def _count_rows(x: Tensor, bins: int) -> Tensor:
    if x.numel() == 0:
        return torch.zeros((len(x), bins), dtype=torch.int64, device=x.device)
    low, high = x.aminmax(dim=1, keepdim=True)
    finite = low.isfinite() & high.isfinite()
    # Where the range overflows, a quarter of everything.
    part = torch.where((high - low).isinf(), 0.25, 1.0).to(x.dtype)
    x, low, high = part * x, part * low, part * high
    width = divided(high - low, bins)
    edges = low + torch.arange(bins + 1, dtype=x.dtype, device=x.device) * width
    counts = [((x >= left[:, None]) & (x < right[:, None])).sum(1) for left, right in pairwise(edges.T)]
    return torch.where(finite, torch.stack(counts, dim=1), -1)


def blend_(networks: Sequence[BankView], coefficients: Tensor, per_filter: bool) -> None:
    """W_k <- c_k W_k + (1 - c_k) W_(k-1), k-1 of the first network being the last, for the first ``len(c)`` networks.

    In place, all from the values before. ``coefficients`` is float32 [networks written, F or L].
    """
    sizes = [layer.filters if per_filter else 1 for layer in networks[0].layout.layers]
    parts = coefficients.split(sizes, dim=1)
    for c, dim, *weights in zip(parts, networks[0].filter_dims, *(one.weights for one in networks), strict=True):
        before = [weight.to(accumulate_dtype(weight)) for weight in weights]
        shape = [1] * before[0].dim()
        shape[dim] = -1
        shares = c.to(before[0].dtype).view(len(c), *shape)
        after = [share * before[k] + (1 - share) * before[k - 1] for k, share in enumerate(shares)]
        for weight, values in zip(weights, after, strict=False):
            weight.copy_(values)
