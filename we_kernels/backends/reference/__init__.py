"""The reference: every operator in plain PyTorch, as short as its formula, on any device.

It is what the other backends are tested against, and what runs where neither of them can.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...layout import Layout
from .asynchronous import asynchronous_sgd_, restore_unselected_, save_unselected_, select_filters
from .crossover import crossover_
from .grafting import blend_, count_bins
from .importance import filter_importance
from .low_rank import project_low_rank_
from .matching import match_filters
from .overlap import filter_overlap

__all__ = [
    "asynchronous_sgd_",
    "blend_",
    "count_bins",
    "crossover_",
    "evolve_",
    "filter_importance",
    "filter_overlap",
    "match_filters",
    "project_low_rank_",
    "restore_unselected_",
    "save_unselected_",
    "select_filters",
    "unavailable",
]


def unavailable(device: torch.device) -> str | None:
    """Never: plain PyTorch works on every device."""
    return None


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
    importance = filter_importance(weights, filter_dims, layout)
    donor, threshold, inferior = match_filters(
        importance, layout.segments, rates, local_ratios, starvation, starvation_limit, zero_is_inferior
    )
    crossover_(weights, filter_dims, layout, donor, rule)
    return donor, importance, threshold, inferior
