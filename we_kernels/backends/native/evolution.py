"""Importance, matching and crossover of CPU tensors and of CUDA tensors."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from ...layout import Layout, Segments
from . import cpu_evolution, cuda_evolution

CUDA_OPERATORS = frozenset({"crossover_", "evolve_", "filter_importance", "match_filters"})
"""Operators that have CUDA kernels in the extension."""


def _kernels(device: torch.device) -> ModuleType:
    return cuda_evolution if device.type == "cuda" else cpu_evolution


def filter_importance(weights: Sequence[Tensor], filter_dims: Sequence[int], layout: Layout) -> Tensor:
    """float32 [F]; float64 weights are summed in float64, all others in float32."""
    importance: Tensor = _kernels(weights[0].device).filter_importance(weights, filter_dims, layout)
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
    result: tuple[Tensor, Tensor, Tensor] = _kernels(importance.device).match_filters(
        importance, segments, rates, local_ratios, starvation, starvation_limit, zero_is_inferior
    )
    return result


def crossover_(weights: Sequence[Tensor], filter_dims: Sequence[int], layout: Layout, donor: Tensor, rule: str) -> None:
    """In place; ``donor`` is int32 [F], entries outside [0, N) count as -1."""
    _kernels(donor.device).crossover_(weights, filter_dims, layout, donor, rule)


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
    result: tuple[Tensor, Tensor, Tensor, Tensor] = _kernels(weights[0].device).evolve_(
        weights, filter_dims, layout, rates, local_ratios, rule, starvation, starvation_limit, zero_is_inferior
    )
    return result
