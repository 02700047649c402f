"""Which filters are inferior, and which dominant filter each of them gets.

Source: Weight Evolution (arXiv 2110.04492), sections 3.1 (selection) and 3.2 (forward matching).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...runtime.layout import Segments
from ..rule import MatchingRule


def match_filters(importance: Tensor, segments: Segments, rule: MatchingRule) -> tuple[Tensor, Tensor, Tensor]:
    """Donors int32 [F], thresholds float32 [G] and numbers of inferior filters int32 [L].

    If any importance is not finite, no filter is matched, thresholds are NaN and ``starvation`` stays as it was.
    """
    device = importance.device
    layer = segments.layer_of_filter(device)
    if not bool((importance.isfinite() & (importance >= 0)).all()):
        return (
            importance.new_full((segments.num_filters,), -1, dtype=torch.int32),
            importance.new_full((segments.num_groups,), math.nan),
            importance.new_zeros((segments.num_layers,), dtype=torch.int32),
        )

    group = torch.tensor(segments.groups, dtype=torch.int64, device=device)[layer]
    threshold = torch.stack(
        [_global_threshold(importance[group == g], rate) for g, rate in enumerate(rule.rates.tolist())]
    )
    peak = importance.new_zeros(segments.num_layers).scatter_reduce_(0, layer, importance, "amax")
    ratio = torch.tensor(rule.local_ratios, dtype=torch.float32, device=device)[group]
    below = importance < threshold[group]
    below |= (importance == 0) & torch.tensor(rule.zero_is_inferior, dtype=torch.bool, device=device)[group]
    low = torch.where(ratio < 0, importance <= threshold[group], importance <= ratio * peak[layer])
    n_global, n_local = (torch.bincount(layer[mask], minlength=segments.num_layers).tolist() for mask in (below, low))
    n_low = _count_inferior(n_global, n_local, segments.groups, rule)
    inferior = torch.tensor(n_low, dtype=torch.int32, device=device)
    return _forward_matching(importance, segments, inferior), threshold, inferior


def _global_threshold(importance: Tensor, rate: float) -> Tensor:
    """The floor(total * rate)-th smallest importance, 0-based (the largest for rate 1; 0 for an empty group)."""
    total = importance.numel()
    if total == 0:
        return importance.new_zeros(())
    k = min(max(math.floor(total * rate), 0), total - 1) if rate == rate else 0
    return torch.kthvalue(importance, k + 1).values


def _count_inferior(
    n_global: list[int],
    n_local: list[int],
    groups: Sequence[int],
    rule: MatchingRule,
) -> list[int]:
    """n_low of every layer; the starvation counters run through the layers in order and are written back."""
    starvation = rule.starvation
    counters = [0] * rule.groups if starvation is None else starvation.tolist()
    n_low = []
    for g, below, low in zip(groups, n_global, n_local, strict=True):
        if rule.local_ratios[g] < 0:  # no local selection in this group
            n_low.append(low)
        elif below == 0:
            n_low.append(0)
        else:
            counters[g] = counters[g] + 1 if low == 0 else 0
            if starvation is not None and low == 0 and counters[g] >= rule.starvation_limit:
                low, counters[g] = 1, 0
            n_low.append(min(below, low))
    if starvation is not None:
        starvation.copy_(torch.tensor(counters, dtype=torch.int32, device="cpu"))
    return n_low


def _forward_matching(importance: Tensor, segments: Segments, inferior: Tensor) -> Tensor:
    """The k-th best of a layer's inferior filters receives from the k-th most dominant filter of the layer."""
    layer = segments.layer_of_filter(importance.device)
    by_importance = importance.argsort(descending=True, stable=True)
    order = by_importance[layer[by_importance].argsort(stable=True)]  # by layer, then descending
    size, start, _ = segments.table_on(importance.device)[layer].unbind(1)
    dominant = size - inferior[layer]  # filters of the layer that stay
    k = torch.arange(segments.num_filters, dtype=torch.int64, device=importance.device) - start - dominant
    matched = ((k >= 0) & (k < dominant)).nonzero().squeeze(1)
    donor = importance.new_full((segments.num_filters,), -1, dtype=torch.int32)
    donor[order[matched]] = (order[start[matched] + k[matched]] - start[matched]).int()
    return donor
