"""Importance, matching and crossover on a GPU: one call, at most five launches, for a whole bank of any dtypes.

Everything is enqueued on torch's current stream of the tensors' device; nothing waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...layout import Layout, Segments
from . import cuda_tables as tables
from .extension import module


def filter_importance(weights: Sequence[Tensor], filter_dims: Sequence[int], layout: Layout) -> Tensor:
    """float32 [F]; float64 weights are summed in float64, all others in float32."""
    with tables.guard(weights[0].device):
        where = tables.place(weights[0].device)
        importance = torch.empty(layout.num_filters, dtype=torch.float32, device=where.device)
        module.cuda_importance(*_bank(weights, layout, where), _memory(importance), where.device_index, where.stream)
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
    with tables.guard(importance.device):
        where = tables.place(importance.device)
        donor, threshold, inferior = _selection(segments, len(local_ratios), where)
        work = tables.scratch(segments, where)  # lives until the kernels are enqueued
        module.cuda_match(
            segments.table.data_ptr(),
            segments.num_layers,
            _memory(importance),
            *_matching(segments, where, work, rates, local_ratios, starvation, starvation_limit, zero_is_inferior),
            _memory(donor),
            _memory(threshold),
            _memory(inferior),
            where.device_index,
            where.stream,
        )
    return donor, threshold, inferior


def crossover_(weights: Sequence[Tensor], filter_dims: Sequence[int], layout: Layout, donor: Tensor, rule: str) -> None:
    """In place; ``donor`` is int32 [F], entries outside [0, N) count as -1."""
    with tables.guard(donor.device):
        where = tables.place(donor.device)
        module.cuda_crossover(*_bank(weights, layout, where), _memory(donor), rule, where.device_index, where.stream)


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
    segments = layout.segments
    with tables.guard(weights[0].device):
        where = tables.place(weights[0].device)
        importance = torch.empty(layout.num_filters, dtype=torch.float32, device=where.device)
        donor, threshold, inferior = _selection(segments, len(local_ratios), where)
        work = tables.scratch(segments, where)  # lives until the kernels are enqueued
        module.cuda_evolve(
            *_bank(weights, layout, where),
            *_matching(segments, where, work, rates, local_ratios, starvation, starvation_limit, zero_is_inferior),
            rule,
            _memory(donor),
            _memory(importance),
            _memory(threshold),
            _memory(inferior),
            where.device_index,
            where.stream,
        )
    return donor, importance, threshold, inferior


_Memory = tuple[int, int]


def _memory(tensor: Tensor) -> _Memory:
    """What the extension sees of a tensor: address and number of bytes."""
    return tensor.data_ptr(), tensor.nbytes


def _bank(
    weights: Sequence[Tensor], layout: Layout, where: tables.Place
) -> tuple[list[int], int, int, _Memory, _Memory]:
    """The weights for the extension's checks, and the same as tables for the kernels."""
    addresses = list(map(Tensor.data_ptr, weights))
    pointers = _memory(tables.upload(tuple(addresses), torch.int64, where))
    return addresses, layout.table.data_ptr(), len(weights), pointers, _memory(tables.layers(layout, where))


def _matching(
    segments: Segments,
    where: tables.Place,
    work: Tensor,
    rates: Tensor,
    local_ratios: Sequence[float],
    starvation: Tensor | None,
    starvation_limit: float,
    zero_is_inferior: Sequence[bool],
) -> tuple[_Memory, _Memory, _Memory, _Memory, _Memory | None, float]:
    groups = len(local_ratios)
    # Behind the ratios of all groups their flags, so that one table holds both.
    rules = (*local_ratios, *map(float, zero_is_inferior or [False] * groups))
    return (
        _memory(tables.plan(segments, groups, where)),
        _memory(work),
        _memory(rates),
        _memory(tables.upload(rules, torch.float32, where)),
        None if starvation is None else _memory(starvation),
        starvation_limit,
    )


def _selection(segments: Segments, groups: int, where: tables.Place) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty(segments.num_filters, dtype=torch.int32, device=where.device),
        torch.empty(groups, dtype=torch.float32, device=where.device),
        torch.empty(segments.num_layers, dtype=torch.int32, device=where.device),
    )
