"""Random subsets of filters, the snapshot of the others, and SGD that moves only the subset."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .. import backends
from ..layout import layout_of, segments_of
from .library import define


def _select_filters(sizes: Sequence[int], rate: Tensor, seed: int, step: Tensor, replacement: bool) -> Tensor:
    segments = segments_of(tuple(sizes), (0,) * len(sizes))
    selected: Tensor = backends.choose(rate.device, "select_filters").select_filters(
        segments, rate, seed, step, replacement
    )
    return selected


def _select_filters_fake(sizes: Sequence[int], rate: Tensor, seed: int, step: Tensor, replacement: bool) -> Tensor:
    return rate.new_empty((sum(sizes),), dtype=torch.bool)


def _save_unselected(weights: Sequence[Tensor], filter_dims: Sequence[int], selected: Tensor, buffer: Tensor) -> None:
    layout = layout_of(weights, filter_dims, [0] * len(weights))
    backends.choose(buffer.device, "save_unselected_").save_unselected_(
        weights, filter_dims, layout, selected.contiguous(), buffer
    )
    increment_version(buffer)


def _restore_unselected(
    weights: Sequence[Tensor], filter_dims: Sequence[int], selected: Tensor, buffer: Tensor
) -> None:
    layout = layout_of(weights, filter_dims, [0] * len(weights))
    backends.choose(buffer.device, "restore_unselected_").restore_unselected_(
        weights, filter_dims, layout, selected.contiguous(), buffer
    )
    increment_version(weights)


def _unselected_fake(weights: Sequence[Tensor], filter_dims: Sequence[int], selected: Tensor, buffer: Tensor) -> None:
    return None


def _asynchronous_sgd(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    filter_dims: Sequence[int],
    selected: Tensor,
    lr: Tensor,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    first_steps: Sequence[bool],
) -> None:
    backends.choose(params[0].device, "asynchronous_sgd_").asynchronous_sgd_(
        params,
        grads,
        momentum_buffers,
        filter_dims,
        selected.contiguous(),
        lr,
        momentum,
        dampening,
        weight_decay,
        nesterov,
        maximize,
        first_steps,
    )
    increment_version(params)
    if momentum_buffers:
        increment_version(momentum_buffers)


def _asynchronous_sgd_fake(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    filter_dims: Sequence[int],
    selected: Tensor,
    lr: Tensor,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    first_steps: Sequence[bool],
) -> None:
    return None


define(
    "select_filters(int[] sizes, Tensor rate, int seed, Tensor step, bool replacement) -> Tensor",
    _select_filters,
    _select_filters_fake,
)
define(
    "save_unselected_(Tensor[] weights, int[] filter_dims, Tensor selected, Tensor(a!) buffer) -> ()",
    _save_unselected,
    _unselected_fake,
)
define(
    "restore_unselected_(Tensor(a!)[] weights, int[] filter_dims, Tensor selected, Tensor buffer) -> ()",
    _restore_unselected,
    _unselected_fake,
)
define(
    "asynchronous_sgd_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, int[] filter_dims, "
    "Tensor selected, Tensor lr, float momentum, float dampening, float weight_decay, bool nesterov, bool maximize, "
    "bool[] first_steps) -> ()",
    _asynchronous_sgd,
    _asynchronous_sgd_fake,
)
