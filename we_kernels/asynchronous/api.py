"""Asynchronous updates: random subsets of filters, the snapshot of the others, and SGD that moves only the subset."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ..bank import FilterBank
from ..checks import check_count, check_rates, check_vector, is_integer
from ..runtime.layout import aligned
from ..runtime.parameters import Shapes, check_finite, check_lengths, check_lr_tensor, check_parameters
from ..runtime.view import BankView
from . import operators
from .rule import SgdRule, SgdTensors


@torch.no_grad()
def select_filters(
    bank: FilterBank, rate: float | Tensor, *, seed: int, step: int | Tensor, replacement: bool = False
) -> Tensor:
    """Which filters move in this step: bool [F], a random subset of every layer, never an empty one.

    Without replacement, exactly ``max(1, round(rate * N))`` of a layer's N filters (halves round to even, as in
    Python): those with the smallest keys. With it, ``max(1, floor(rate * N))`` draws, so fewer distinct ones. The
    random numbers are Philox4x32-10 of ``seed`` and (filter or draw, layer, ``step``): the same on every backend,
    device and rank, and nothing is stored. Layers are counted in the order of the bank. A bank with ``filter_dim=1``
    selects input channels. Source: Weight asynchronous update (10.1007/s41095-020-0185-5).

    Args:
        bank: gives the layers; its weights are not read.
        rate: fraction in [0, 1], or a float64 [1] tensor on the weights' device (read there, so that it can change
            under a captured graph).
        seed: from 0 to 2^63 - 1.
        step: number of the iteration, from 0 to 2^63 - 1, or an int64 [1] tensor on the weights' device.
        replacement: draw with replacement.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, size, dtype, device or range.
    """
    rates = check_rates(rate, 1, bank.device)
    seed = check_count(seed, "seed")
    if isinstance(step, Tensor):
        check_vector(step, "step", 1, torch.int64, bank.device)
    else:
        step = torch.full((1,), check_count(step, "step"), dtype=torch.int64, device=bank.device)
    selected: Tensor = operators.select_filters(bank.segments, rates, seed, step, bool(replacement))
    return selected


def unselected_buffer(bank: FilterBank) -> Tensor:
    """Memory for `save_unselected_`: uint8 [B] on the weights' device.

    B is the bytes of all weights, each rounded up to 64: every filter has its own place, so that one buffer serves all
    selections.
    """
    return torch.empty(_buffer_size(bank), dtype=torch.uint8, device=bank.device)


@torch.no_grad()
def save_unselected_(bank: FilterBank, selected: Tensor, buffer: Tensor) -> None:
    """Copy the filters that are not selected into ``buffer``, bit for bit.

    Args:
        bank: the weights to read.
        selected: bool [F] on the weights' device.
        buffer: from `unselected_buffer` for this bank; the places of selected filters keep what they hold.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, size, dtype or device; nothing is changed.
    """
    view = _check_snapshot(bank, selected, buffer)
    if bank.weights:
        operators.save_unselected_(view, selected.contiguous(), buffer)


@torch.no_grad()
def restore_unselected_(bank: FilterBank, selected: Tensor, buffer: Tensor) -> None:
    """Write the filters that are not selected back from ``buffer``, bit for bit; the others are not touched.

    Args:
        bank: the weights to change, with the shapes, strides and dtypes that they had when they were saved.
        selected: bool [F] on the weights' device, as given to `save_unselected_`.
        buffer: what that filled.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, size, dtype or device; nothing is changed.
    """
    view = _check_snapshot(bank, selected, buffer)
    if bank.weights:
        operators.restore_unselected_(view, selected.contiguous(), buffer)


@torch.no_grad()
def asynchronous_sgd_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor] | None,
    filter_dims: Sequence[int | None],
    selected: Tensor,
    *,
    lr: float | Tensor,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    first_step: bool | Sequence[bool] = False,
) -> None:
    """One step of SGD on all parameters in one call, in place; of masked ones only the selected filters move.

    Momentum buffers advance for all elements. What moves, moves as under ``torch.optim.SGD(foreach=True)``, bit for bit
    on a CPU; the other filters keep their bits. Gradients are only read (foreach's Nesterov changes them). Source:
    Weight asynchronous update (10.1007/s41095-020-0185-5).

    Args:
        params: distinct tensors, float32, float64, float16 or bfloat16 (mixed if need be), any strides, of up to 5
            dimensions, all on one device.
        grads: one per parameter, of its shape, dtype and device, any strides.
        momentum_buffers: the same; needed if ``momentum`` is not 0.
        filter_dims: for each parameter the dimension along which its filters lie, or None: all of it moves.
        selected: bool [F], the filters of the parameters with a filter dimension, in their order, as `select_filters`
            returns them for a bank of these.
        lr: a number, or a tensor of one element on the parameters' device (read there, so that it can change under a
            captured graph) or the CPU.
        momentum, dampening, weight_decay, nesterov, maximize: as in torch.optim.SGD.
        first_step: whether the momentum buffers hold nothing yet, for all or one each; they are then set to the
            gradient (with weight decay), without dampening.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, size, dtype, device or range; nothing is changed.
    """
    params, grads, dims = list(params), list(grads), _check_dims(filter_dims)
    momentum, dampening = check_finite(momentum, "momentum"), check_finite(dampening, "dampening")
    weight_decay = check_finite(weight_decay, "weight_decay")
    if nesterov and (momentum <= 0 or dampening != 0):
        raise ValueError("nesterov needs momentum above 0 and dampening 0")
    buffers = [] if momentum == 0 else list(momentum_buffers or ())
    firsts = [first_step] * len(params) if isinstance(first_step, bool) else list(first_step)
    check_lengths(len(params), grads=grads, filter_dims=dims, first_step=firsts)
    if momentum != 0:
        check_lengths(len(params), momentum_buffers=buffers)
    if not params:
        return
    shapes, device = check_parameters(params, grads, {"momentum_buffers": buffers})
    count = _count_filters if torch.compiler.is_compiling() else _counted  # caches cannot be traced
    filters = count(shapes, tuple(dims))
    check_vector(selected, "selected", filters, torch.bool, device)
    lr_tensor = _check_lr(lr, device)

    if () in shapes:
        params, grads, buffers = ([x.view(1) if x.dim() == 0 else x for x in xs] for xs in (params, grads, buffers))
    if any(0 in shape for shape in shapes):
        # They have no filters either.
        filled = [i for i, shape in enumerate(shapes) if 0 not in shape]
        params, grads, dims, firsts = ([xs[i] for i in filled] for xs in (params, grads, dims, firsts))  # type: ignore[assignment]
        buffers = [buffers[i] for i in filled] if buffers else []
    if params:
        rule = SgdRule(lr_tensor, momentum, dampening, weight_decay, bool(nesterov), bool(maximize))
        operators.asynchronous_sgd_(SgdTensors(params, grads, buffers, dims, firsts), selected.contiguous(), rule)


def _check_snapshot(bank: FilterBank, selected: Tensor, buffer: Tensor) -> BankView:
    view = bank.view()
    check_vector(selected, "selected", bank.num_filters, torch.bool, bank.device)
    check_vector(buffer, "buffer (make it with unselected_buffer)", _buffer_size(bank), torch.uint8, bank.device)
    if not buffer.is_contiguous():
        raise ValueError("buffer must be contiguous; make it with unselected_buffer")
    return view


def _buffer_size(bank: FilterBank) -> int:
    return sum(aligned(weight.numel() * weight.element_size()) for weight in bank.weights)


def _check_lr(lr: float | Tensor, device: torch.device) -> Tensor:
    """float64 [1] on ``device``."""
    if not isinstance(lr, Tensor):
        return torch.full((1,), check_finite(lr, "lr"), dtype=torch.float64, device=device)
    check_lr_tensor(lr, device)
    if lr.device.type == "cpu" != device.type:
        return torch.full((1,), lr.item(), dtype=torch.float64, device=device)
    return lr.double().reshape(1)


def _check_dims(filter_dims: Sequence[int | None]) -> list[int]:
    """-1 stands for None."""
    for i, dim in enumerate(filter_dims):
        if dim is not None and not is_integer(dim):
            raise TypeError(f"filter_dims[{i}] must be an integer or None, got {type(dim).__name__}")
        if dim is not None and dim < 0:
            raise ValueError(f"filter_dims[{i}] must be None or at least 0, got {dim}")
    return [-1 if dim is None else int(dim) for dim in filter_dims]


def _count_filters(shapes: Shapes, dims: tuple[int, ...]) -> int:
    """F of the masked parameters; refuses filter dimensions that they do not have."""
    filters = 0
    for i, (shape, dim) in enumerate(zip(shapes, dims, strict=True)):
        if dim >= len(shape):
            raise ValueError(f"filter_dims[{i}] must be None or below {len(shape)}, got {dim}")
        if dim >= 0 and shape[dim] > 0 and 0 in shape:
            raise ValueError(f"params[{i}] of shape {tuple(shape)} has filters without elements")
        filters += shape[dim] if dim >= 0 else 0
    return filters


_counted = lru_cache(maxsize=256)(_count_filters)
