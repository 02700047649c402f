"""Entropies of weight tensors, and blends of networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..operator import Operator, count_filters
from ..runtime.view import BankView

_FILES = {"torch": "reference", "native": "native", "triton": "triton"}


def _entropy(count_bins: Callable[..., Tensor], bank: BankView, bins: int, per_filter: bool) -> Tensor:
    counts = count_bins(bank, bins, per_filter)
    entropy = entropy_of_counts(counts, bank.layout.elements_on(bank.device, per_filter))
    return torch.where(counts[:, 0] < 0, torch.nan, entropy)


def entropy_of_counts(counts: Tensor, elements: Tensor) -> Tensor:
    """float32 [rows]: ``-sum_k p_k ln p_k`` of ``p = counts / elements``, of int64 [rows, bins] and float64 [rows]."""
    # float64: its logarithms, rounded to float32 at the end, are the same on every device.
    entropy: Tensor = torch.special.entr(counts / elements[:, None]).sum(1)
    return entropy.float()


def _fake_entropy(
    weights: Sequence[Tensor], filter_dims: Sequence[int], groups: Sequence[int], bins: int, per_filter: bool
) -> Tensor:
    return weights[0].new_empty((_rows(weights, filter_dims, per_filter),), dtype=torch.float32)


def _fake_counts(
    weights: Sequence[Tensor], filter_dims: Sequence[int], groups: Sequence[int], bins: int, per_filter: bool
) -> Tensor:
    return weights[0].new_empty((_rows(weights, filter_dims, per_filter), bins), dtype=torch.int64)


def _rows(weights: Sequence[Tensor], filter_dims: Sequence[int], per_filter: bool) -> int:
    return count_filters(weights, filter_dims) if per_filter else len(weights)


def _blend_two(
    blend: Callable[..., None], bank: BankView, others: Sequence[Tensor], coefficient: Tensor, per_filter: bool
) -> None:
    blend([bank, bank.like(others)], coefficient.contiguous()[None], per_filter)


def _blend_ring(
    blend: Callable[..., None],
    weights: Sequence[Tensor],
    filter_dims: Sequence[int],
    coefficients: Tensor,
    per_filter: bool,
) -> None:
    layers = len(filter_dims)
    networks = [BankView(weights[i : i + layers], filter_dims, ()) for i in range(0, len(weights), layers)]
    blend(networks, coefficients.contiguous(), per_filter)


weight_entropy = Operator(
    "weight_entropy(Tensor[] weights, int[] filter_dims, int[] groups, int bins, bool per_filter) -> Tensor",
    [BankView, int, bool],
    _FILES,
    __package__,
    function="count_bins",
    fake=_fake_entropy,
    around=_entropy,
)

count_bins = Operator(
    "count_bins(Tensor[] weights, int[] filter_dims, int[] groups, int bins, bool per_filter) -> Tensor",
    [BankView, int, bool],
    _FILES,
    __package__,
    fake=_fake_counts,
)

blend_ = Operator(
    "blend_(Tensor(a!)[] weights, int[] filter_dims, int[] groups, Tensor[] others, Tensor coefficient, "
    "bool per_filter) -> ()",
    [BankView, list, Tensor, bool],
    _FILES,
    __package__,
    around=_blend_two,
)

blend_ring_ = Operator(
    "blend_ring_(Tensor(a!)[] weights, int[] filter_dims, Tensor coefficients, bool per_filter) -> ()",
    [list, list, Tensor, bool],
    _FILES,
    __package__,
    function="blend_",
    around=_blend_ring,
)
