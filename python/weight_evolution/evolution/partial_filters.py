"""Filters of which every rank has some input channels: their norms are sums over the ranks, the rest is local."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

import we_kernels as wk


class Norms(NamedTuple):
    """Of the whole filters of one weight, on every rank."""

    l1: Tensor
    """float32 [N]."""
    importance: Tensor
    """float32 [N]: the same over the number of kernels."""


def with_one_kernel(bank: wk.FilterBank, partial: Sequence[bool]) -> wk.FilterBank:
    """Partial filters as one kernel each, of which `filter_importance` gives the part's L1 norm; others as they are.

    Args:
        bank: this rank's parts of the weights.
        partial: whether each is of partial filters.
    """
    weights = list(bank.weights)
    for position, dim in enumerate(bank.filter_dims):
        if partial[position]:
            filters = weights[position].movedim(dim, 0)
            weights[position] = filters.reshape(len(filters), 1, filters.shape[1], -1)
    dims = [0 if split else dim for split, dim in zip(partial, bank.filter_dims, strict=True)]
    return wk.FilterBank(weights, dims, groups=bank.groups, names=bank.names)


def blend_rows_(filters: Tensor, rows: Tensor, sources: Tensor, l1: Tensor) -> None:
    """`we_kernels.crossover_` of filters that are blended, with the coefficient of the whole filters.

    Args:
        filters: [N, C, *kernel], some input channels of them.
        rows: int64 [m], to be overwritten.
        sources: int64 [m], the donor of each.
        l1: float32 [N], norms of the whole filters.
    """
    norms = l1.to(torch.promote_types(filters.dtype, torch.float32)).view(-1, *[1] * (filters.dim() - 1))
    own, donors = filters[rows], filters[sources]
    a = norms[rows] / (norms[rows] + norms[sources])
    blended = (a * own + (1 - a) * donors).to(filters.dtype)
    filters[rows] = torch.where(blended.isfinite(), blended, own)
