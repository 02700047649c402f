"""Overwrite inferior filters with a combination of theirs and their donors' elements.

Source: Weight Evolution (arXiv 2110.04492), section 3.3 and Figure 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...runtime.filters import accumulate_dtype, filters_first
from ...runtime.view import BankView
from .importance import l1_norm


def crossover_(bank: BankView, donor: Tensor, rule: str) -> None:
    """In place; ``donor`` is int32 [F]. An element whose new value would not be finite keeps its value."""
    layout = bank.layout
    layer_of_filter = layout.segments.layer_of_filter(donor.device)
    size = layout.segments.table_on(donor.device)[layer_of_filter, 0]
    donor = torch.where(donor < size, donor, -1)  # a copy: what another thread writes now cannot get past the check
    replaced = (donor >= 0).nonzero().squeeze(1)
    counts = torch.bincount(layer_of_filter[replaced], minlength=len(layout.layers)).tolist()
    donors = donor[replaced].long()
    rows_by_layer, donors_by_layer = torch.split(replaced, counts), torch.split(donors, counts)
    for weight, dim, layer, rows, sources in zip(
        bank.weights, bank.filter_dims, layout.layers, rows_by_layer, donors_by_layer, strict=True
    ):
        if len(rows) == 0:
            continue
        filters = filters_first(weight, dim)
        own = rows - layer.first_filter
        # float16 and bfloat16 are combined in float32, so that every backend rounds once, at the end.
        q, p = (filters[index].to(accumulate_dtype(weight)) for index in (own, sources))
        if layer.blend:
            new = _blend(q, p)
        elif rule == "paper":
            new = _paper(q.flatten(2), p.flatten(2)).view_as(q)
        else:
            new = _released(q.flatten(2), p.flatten(2)).view_as(q)
        new = new.to(weight.dtype)
        filters[own] = torch.where(new.isfinite(), new, q.to(weight.dtype))


def _blend(q: Tensor, p: Tensor) -> Tensor:
    """q <- a q + (1 - a) p with a = |q|_1 / (|q|_1 + |p|_1), one a per filter."""
    norm_q, norm_p = l1_norm(q), l1_norm(p)
    a = (norm_q / (norm_q + norm_p)).view(-1, *[1] * (q.dim() - 1))
    return a * q + (1 - a) * p


def _extremes(q: Tensor, p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Per kernel: position and value of q's smallest magnitude, value of p's largest (the first of equals)."""
    position = q.abs().argmin(-1, keepdim=True)
    largest = p.gather(-1, p.abs().argmax(-1, keepdim=True))
    return position, q.gather(-1, position), largest


def _paper(q: Tensor, p: Tensor) -> Tensor:
    """v = a s + (1 - a) l with a = |s| / (|s| + |l|), at the position of s only."""
    position, s, l = _extremes(q, p)  # noqa: E741  (the paper's names)
    a = s.abs() / (s.abs() + l.abs())
    return q.scatter(-1, position, a * s + (1 - a) * l)


def _released(q: Tensor, p: Tensor) -> Tensor:
    """v = a l + (1 - a) s with a = s / (s + l), signed, at every element equal to s."""
    _, s, l = _extremes(q, p)  # noqa: E741
    a = s / (s + l)
    return torch.where(q == s, a * l + (1 - a) * s, q)
