"""Importance, matching and crossover in C++: one call for a whole bank, on torch's number of threads."""

from __future__ import annotations

import torch
from torch import Tensor

from ..runtime.layout import Segments
from ..runtime.native import module
from ..runtime.view import BankView
from .rule import MatchingRule


def filter_importance(bank: BankView) -> Tensor:
    """float32 [F]; float64 weights are summed in float64, all others in float32."""
    importance = torch.empty(bank.layout.num_filters, dtype=torch.float32, device="cpu")
    module.filter_importance(*_bank(bank), importance.data_ptr(), importance.numel(), torch.get_num_threads())
    return importance


def match_filters(importance: Tensor, segments: Segments, rule: MatchingRule) -> tuple[Tensor, Tensor, Tensor]:
    """Donors int32 [F], thresholds float32 [G] and numbers of inferior filters int32 [L]."""
    found = rule.new_selection(segments, importance.device)
    module.match_filters(
        importance.data_ptr(),
        importance.numel(),
        segments.table.data_ptr(),
        segments.num_layers,
        *_matching(rule),
        *map(Tensor.data_ptr, found),
        torch.get_num_threads(),
    )
    return found


def crossover_(bank: BankView, donor: Tensor, rule: str) -> None:
    """In place; ``donor`` is int32 [F], entries outside [0, N) count as -1."""
    module.crossover(*_bank(bank), donor.data_ptr(), donor.numel(), rule, torch.get_num_threads())


def evolve_(bank: BankView, crossover: str, rule: MatchingRule) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Donors, importances, thresholds and numbers of inferior filters."""
    segments = bank.layout.segments
    importance = torch.empty(segments.num_filters, dtype=torch.float32, device="cpu")
    donor, threshold, inferior = rule.new_selection(segments, importance.device)
    module.evolve(
        *_bank(bank),
        segments.num_filters,
        *_matching(rule),
        crossover,
        donor.data_ptr(),
        importance.data_ptr(),
        threshold.data_ptr(),
        inferior.data_ptr(),
        torch.get_num_threads(),
    )
    return donor, importance, threshold, inferior


def _bank(bank: BankView) -> tuple[list[int], int, int]:
    return list(bank.addresses), bank.layout.table.data_ptr(), len(bank.addresses)


def _matching(rule: MatchingRule) -> tuple[int, list[float], list[bool], int, float]:
    starvation = 0 if rule.starvation is None else rule.starvation.data_ptr()
    return (
        rule.rates.data_ptr(),
        list(rule.local_ratios),
        list(rule.zero_is_inferior),
        starvation,
        rule.starvation_limit,
    )
