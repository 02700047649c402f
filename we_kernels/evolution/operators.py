"""Importance, matching and crossover, and the three as one step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..operator import Operator, count_filters
from ..runtime.layout import Segments
from ..runtime.view import BankView
from .donors import check_donors
from .rule import MatchingRule

_FILES = {"torch": "reference", "native": "native", "native on cuda": "cuda", "triton": "triton"}

_RULE = "Tensor rates, float[] local_ratios, Tensor(b!)? starvation, float starvation_limit, bool[] zero_is_inferior"


def _fake_importance(weights: Sequence[Tensor], filter_dims: Sequence[int], groups: Sequence[int]) -> Tensor:
    return weights[0].new_empty((count_filters(weights, filter_dims),), dtype=torch.float32)


def _fake_matching(
    importance: Tensor, sizes: Sequence[int], groups: Sequence[int], rates: Tensor, *rule: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        importance.new_empty(importance.shape, dtype=torch.int32),
        importance.new_empty(rates.shape),
        importance.new_empty((len(sizes),), dtype=torch.int32),
    )


def _fake_evolution(
    weights: Sequence[Tensor], filter_dims: Sequence[int], groups: Sequence[int], crossover: str, *rule: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    importance = _fake_importance(weights, filter_dims, groups)
    donor, threshold, inferior = _fake_matching(importance, filter_dims, groups, *rule)
    return donor, importance, threshold, inferior


def _checked_crossover(
    crossover: Callable[..., None], bank: BankView, donor: Tensor, rule: str, validate: bool
) -> None:
    if validate:
        check_donors(donor, bank.layout.segments)
    crossover(bank, donor, rule)


filter_importance = Operator(
    "filter_importance(Tensor[] weights, int[] filter_dims, int[] groups) -> Tensor",
    [BankView],
    _FILES,
    __package__,
    fake=_fake_importance,
)

match_filters = Operator(
    f"match_filters(Tensor importance, int[] sizes, int[] groups, {_RULE}) "
    "-> (Tensor donor, Tensor threshold, Tensor inferior)",
    [Tensor, Segments, MatchingRule],
    _FILES,
    __package__,
    fake=_fake_matching,
)

crossover_ = Operator(
    "crossover_(Tensor(a!)[] weights, int[] filter_dims, int[] groups, Tensor donor, str rule, bool validate) -> ()",
    [BankView, Tensor, str, bool],
    _FILES,
    __package__,
    around=_checked_crossover,
)

evolve_ = Operator(
    f"evolve_(Tensor(a!)[] weights, int[] filter_dims, int[] groups, str crossover, {_RULE}) "
    "-> (Tensor donor, Tensor importance, Tensor threshold, Tensor inferior)",
    [BankView, str, MatchingRule],
    _FILES,
    __package__,
    fake=_fake_evolution,
)
