"""Entropies of tensors of which each bank holds a part: their ranges are compared, their counts added.

The entropies have the bits of `weight_entropy` of the whole tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..bank import FilterBank
from . import operators


@torch.no_grad()
def part_ranges(bank: FilterBank) -> Tensor:
    """Minimum and maximum of every tensor, float64 [L, 2], on its device; infinity and -infinity of an empty one."""
    empty = torch.tensor([torch.inf, -torch.inf], dtype=torch.float64, device=bank.device)
    ranges = [torch.stack(weight.aminmax()).double() if weight.numel() else empty for weight in bank.weights]
    return torch.stack([empty, *ranges])[1:]


@torch.no_grad()
def part_counts(bank: FilterBank, ranges: Tensor, bins: int) -> Tensor:
    """Elements of every tensor in each bin, int64 [L, bins]: as `weight_entropy` counts those of the whole tensors.

    Args:
        bank: parts of tensors, all elements finite.
        ranges: float64 [L, 2], minimum and maximum of the whole tensors.
        bins: from 1 to `MAX_BINS`.
    """
    if not bank.weights:
        return torch.empty((0, bins), dtype=torch.int64, device="cpu")
    # A part with the ends of the whole range has the edges of the whole; then the ends are taken out again.
    ends = [pair.to(weight)[None] for pair, weight in zip(ranges, bank.weights, strict=True)]
    extended = [torch.cat([weight.flatten()[None], pair], 1) for weight, pair in zip(bank.weights, ends, strict=True)]
    counts: Tensor = operators.count_bins(FilterBank([*extended, *ends]).view(), bins, False)
    return counts[: len(ends)] - counts[len(ends) :]
