"""Entropies of weight tensors, and blends of networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .. import backends
from ..layout import layout_of
from .library import count_filters, define


def _weight_entropy(weights: Sequence[Tensor], filter_dims: Sequence[int], bins: int, per_filter: bool) -> Tensor:
    layout = layout_of(weights, filter_dims, [0] * len(weights))
    device = weights[0].device
    with torch.no_grad():
        counts = backends.choose(device, "count_bins").count_bins(weights, filter_dims, layout, bins, per_filter)
        # float64: its logarithms, rounded to float32 at the end, are the same on every device.
        shares = counts / layout.elements_on(device, per_filter)[:, None]
        entropy = torch.special.entr(shares).sum(1).float()
        return torch.where(counts[:, 0] < 0, torch.nan, entropy)


def _weight_entropy_fake(weights: Sequence[Tensor], filter_dims: Sequence[int], bins: int, per_filter: bool) -> Tensor:
    size = count_filters(weights, filter_dims) if per_filter else len(weights)
    return weights[0].new_empty((size,), dtype=torch.float32)


def _blend(
    weights: Sequence[Tensor],
    others: Sequence[Tensor],
    filter_dims: Sequence[int],
    coefficient: Tensor,
    per_filter: bool,
) -> None:
    _blend_networks([weights, others], filter_dims, coefficient.contiguous()[None], per_filter)
    increment_version(weights)


def _blend_fake(
    weights: Sequence[Tensor],
    others: Sequence[Tensor],
    filter_dims: Sequence[int],
    coefficient: Tensor,
    per_filter: bool,
) -> None:
    return None


def _blend_ring(weights: Sequence[Tensor], filter_dims: Sequence[int], coefficients: Tensor, per_filter: bool) -> None:
    layers = len(filter_dims)
    networks = [weights[i : i + layers] for i in range(0, len(weights), layers)]
    _blend_networks(networks, filter_dims, coefficients.contiguous(), per_filter)
    increment_version(weights)


def _blend_ring_fake(
    weights: Sequence[Tensor], filter_dims: Sequence[int], coefficients: Tensor, per_filter: bool
) -> None:
    return None


def _blend_networks(
    networks: Sequence[Sequence[Tensor]], filter_dims: Sequence[int], coefficients: Tensor, per_filter: bool
) -> None:
    layouts = [layout_of(weights, filter_dims, [0] * len(weights)) for weights in networks]
    with torch.no_grad():
        backends.choose(coefficients.device, "blend_").blend_(networks, filter_dims, layouts, coefficients, per_filter)


define(
    "weight_entropy(Tensor[] weights, int[] filter_dims, int bins, bool per_filter) -> Tensor",
    _weight_entropy,
    _weight_entropy_fake,
)
define(
    "blend_(Tensor(a!)[] weights, Tensor[] others, int[] filter_dims, Tensor coefficient, bool per_filter) -> ()",
    _blend,
    _blend_fake,
)
define(
    "blend_ring_(Tensor(a!)[] weights, int[] filter_dims, Tensor coefficients, bool per_filter) -> ()",
    _blend_ring,
    _blend_ring_fake,
)
