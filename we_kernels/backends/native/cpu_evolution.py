"""Importance, matching and crossover: one call for a whole bank, on torch's number of threads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...layout import Layout, Segments
from .extension import module


def filter_importance(weights: Sequence[Tensor], filter_dims: Sequence[int], layout: Layout) -> Tensor:
    """float32 [F]; float64 weights are summed in float64, all others in float32."""
    importance = torch.empty(layout.num_filters, dtype=torch.float32, device="cpu")
    module.filter_importance(
        list(map(Tensor.data_ptr, weights)),
        layout.table.data_ptr(),
        len(weights),
        importance.data_ptr(),
        layout.num_filters,
        torch.get_num_threads(),
    )
    return importance


def match_filters(
    importance: Tensor,
    segments: Segments,
    rates: Tensor,
    local_ratios: Sequence[float],
    starvation: Tensor | None,
    starvation_limit: float,
    zero_is_inferior: Sequence[bool] = (),
) -> tuple[Tensor, Tensor, Tensor]:
    """Donors int32 [F], thresholds float32 [G] and numbers of inferior filters int32 [L]."""
    donor = torch.empty(segments.num_filters, dtype=torch.int32, device="cpu")
    threshold = torch.empty(len(local_ratios), dtype=torch.float32, device="cpu")
    inferior = torch.empty(segments.num_layers, dtype=torch.int32, device="cpu")
    module.match_filters(
        importance.data_ptr(),
        importance.numel(),
        segments.table.data_ptr(),
        segments.num_layers,
        rates.data_ptr(),
        local_ratios,
        zero_is_inferior,
        0 if starvation is None else starvation.data_ptr(),
        starvation_limit,
        donor.data_ptr(),
        threshold.data_ptr(),
        inferior.data_ptr(),
        torch.get_num_threads(),
    )
    return donor, threshold, inferior


def crossover_(weights: Sequence[Tensor], filter_dims: Sequence[int], layout: Layout, donor: Tensor, rule: str) -> None:
    """In place; ``donor`` is int32 [F], entries outside [0, N) count as -1."""
    module.crossover(
        list(map(Tensor.data_ptr, weights)),
        layout.table.data_ptr(),
        len(weights),
        donor.data_ptr(),
        donor.numel(),
        rule,
        torch.get_num_threads(),
    )


def evolve_(
    weights: Sequence[Tensor],
    filter_dims: Sequence[int],
    layout: Layout,
    rates: Tensor,
    local_ratios: Sequence[float],
    rule: str,
    starvation: Tensor | None,
    starvation_limit: float,
    zero_is_inferior: Sequence[bool] = (),
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Importance, matching and crossover: donors, importances, thresholds, numbers of inferior filters."""
    donor = torch.empty(layout.num_filters, dtype=torch.int32, device="cpu")
    importance = torch.empty(layout.num_filters, dtype=torch.float32, device="cpu")
    threshold = torch.empty(len(local_ratios), dtype=torch.float32, device="cpu")
    inferior = torch.empty(len(weights), dtype=torch.int32, device="cpu")
    module.evolve(
        list(map(Tensor.data_ptr, weights)),
        layout.table.data_ptr(),
        len(weights),
        layout.num_filters,
        rates.data_ptr(),
        local_ratios,
        zero_is_inferior,
        rule,
        0 if starvation is None else starvation.data_ptr(),
        starvation_limit,
        donor.data_ptr(),
        importance.data_ptr(),
        threshold.data_ptr(),
        inferior.data_ptr(),
        torch.get_num_threads(),
    )
    return donor, importance, threshold, inferior
