"""Importance, matching and crossover in C++ on a GPU: one call, at most five launches, for a whole bank of any dtypes.

Everything is enqueued on torch's current stream of the tensors' device; nothing waits for it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..runtime.layout import Segments
from ..runtime.native import module
from ..runtime.transfer import Place, on, per_stream, table_of, table_to_device, upload
from ..runtime.view import BankView
from .rule import MatchingRule


def filter_importance(bank: BankView) -> Tensor:
    """float32 [F]; float64 weights are summed in float64, all others in float32."""
    importance = torch.empty(bank.layout.num_filters, dtype=torch.float32, device=bank.device)
    with on(bank.device):
        module.cuda_importance(*_bank(bank), _memory(importance), *_where(bank.place))
    return importance


def match_filters(importance: Tensor, segments: Segments, rule: MatchingRule) -> tuple[Tensor, Tensor, Tensor]:
    """Donors int32 [F], thresholds float32 [G] and numbers of inferior filters int32 [L]."""
    place = Place.current(importance.device)
    found = rule.new_selection(segments, place.device)
    scratch = _scratch(segments, place)  # lives until the kernels are enqueued
    with on(place.device):
        module.cuda_match(
            segments.table.data_ptr(),
            segments.num_layers,
            _memory(importance),
            *_matching(segments, rule, scratch, place),
            *map(_memory, found),
            *_where(place),
        )
    return found


def crossover_(bank: BankView, donor: Tensor, rule: str) -> None:
    """In place; ``donor`` is int32 [F], entries outside [0, N) count as -1."""
    with on(bank.device):
        module.cuda_crossover(*_bank(bank), _memory(donor), rule, *_where(bank.place))


def evolve_(bank: BankView, crossover: str, rule: MatchingRule) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Donors, importances, thresholds and numbers of inferior filters."""
    segments, place = bank.layout.segments, bank.place
    importance = torch.empty(segments.num_filters, dtype=torch.float32, device=place.device)
    donor, threshold, inferior = rule.new_selection(segments, place.device)
    scratch = _scratch(segments, place)  # lives until the kernels are enqueued
    with on(place.device):
        module.cuda_evolve(
            *_bank(bank),
            *_matching(segments, rule, scratch, place),
            crossover,
            *map(_memory, (donor, importance, threshold, inferior)),
            *_where(place),
        )
    return donor, importance, threshold, inferior


_Memory = tuple[int, int]


def _memory(tensor: Tensor) -> _Memory:
    """What the extension sees of a tensor: address and number of bytes."""
    return tensor.data_ptr(), tensor.nbytes


def _where(place: Place) -> tuple[int, int]:
    return place.device.index or 0, place.stream


def _bank(bank: BankView) -> tuple[list[int], int, int, _Memory, _Memory]:
    """The weights for the extension's checks, and the same as tables for the kernels."""
    layout, place = bank.layout, bank.place
    layers = table_of(layout, "layers", place, lambda: table_to_device(layout.table, place.device))
    addresses, pointers = list(bank.addresses), _memory(bank.addresses_on_device)
    return addresses, layout.table.data_ptr(), len(addresses), pointers, _memory(layers)


def _matching(segments: Segments, rule: MatchingRule, scratch: Tensor, place: Place) -> tuple[Any, ...]:
    plan = table_of(segments, f"plan of {rule.groups} groups", place, lambda: _make_plan(segments, rule, place))
    return (
        _memory(plan),
        _memory(scratch),
        _memory(rule.rates),
        _memory(upload(rule.table, torch.float32, place)),
        None if rule.starvation is None else _memory(rule.starvation),
        rule.starvation_limit,
    )


def _make_plan(segments: Segments, rule: MatchingRule, place: Place) -> Tensor:
    """int32: where the filters of layers and groups are (csrc/cuda/plan.h)."""
    source = segments.table.data_ptr(), segments.num_layers, rule.groups
    plan = torch.empty(module.cuda_plan_size(*source), dtype=torch.int32, device="cpu")
    module.cuda_make_plan(*source, _memory(plan))
    return table_to_device(plan, place.device)


def _scratch(segments: Segments, place: Place) -> Tensor:
    size = module.cuda_scratch_size(segments.num_layers, segments.num_filters)
    return per_stream(segments, "scratch", place, lambda: torch.empty(size, dtype=torch.int32, device=place.device))
