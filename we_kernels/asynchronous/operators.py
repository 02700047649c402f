"""Random subsets of filters, the snapshot of the others, and SGD that moves only the subset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..operator import Operator
from ..runtime.layout import Segments
from ..runtime.view import BankView
from .rule import SgdRule, SgdTensors

_FILES = {"torch": "reference", "native": "native", "triton": "triton"}


def _fake_selection(sizes: Sequence[int], groups: Sequence[int], rate: Tensor, *rest: Any) -> Tensor:
    return rate.new_empty((sum(sizes),), dtype=torch.bool)


def _copy(
    implementation: Callable[..., None], bank: BankView, selected: Tensor, buffer: Tensor, *, restore: bool
) -> None:
    implementation(bank, selected, buffer, restore)


select_filters = Operator(
    "select_filters(int[] sizes, int[] groups, Tensor rate, int seed, Tensor step, bool replacement) -> Tensor",
    [Segments, Tensor, int, Tensor, bool],
    _FILES,
    __package__,
    fake=_fake_selection,
)

save_unselected_ = Operator(
    "save_unselected_(Tensor[] weights, int[] filter_dims, int[] groups, Tensor selected, Tensor(a!) buffer) -> ()",
    [BankView, Tensor, Tensor],
    _FILES,
    __package__,
    function="copy_unselected",
    around=partial(_copy, restore=False),
)

restore_unselected_ = Operator(
    "restore_unselected_(Tensor(a!)[] weights, int[] filter_dims, int[] groups, Tensor selected, Tensor buffer) -> ()",
    [BankView, Tensor, Tensor],
    _FILES,
    __package__,
    function="copy_unselected",
    around=partial(_copy, restore=True),
)

asynchronous_sgd_ = Operator(
    "asynchronous_sgd_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, int[] filter_dims, "
    "bool[] first_steps, Tensor selected, Tensor lr, float momentum, float dampening, float weight_decay, "
    "bool nesterov, bool maximize) -> ()",
    [SgdTensors, Tensor, SgdRule],
    _FILES,
    __package__,
)
