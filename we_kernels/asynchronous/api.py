"""Asynchronous updates: random subsets of filters, the snapshot of the others, and SGD that moves only the subset."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from operator import attrgetter

import torch
from torch import Tensor

from ..bank import FilterBank
from ..checks import check_count, check_number, check_rates, check_vector, is_integer
from ..runtime.layout import DTYPES, MAX_DIMS, aligned
from ..runtime.memory import strides_are_disjoint
from ..runtime.view import BankView
from ..runtime.weights import check_address, have_addresses
from . import operators
from .rule import SgdRule, SgdTensors

_FIELDS = ("shape", "dtype", "device", "layout")


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
    momentum, dampening = _check_finite(momentum, "momentum"), _check_finite(dampening, "dampening")
    weight_decay = _check_finite(weight_decay, "weight_decay")
    if nesterov and (momentum <= 0 or dampening != 0):
        raise ValueError("nesterov needs momentum above 0 and dampening 0")
    buffers = [] if momentum == 0 else list(momentum_buffers or ())
    firsts = [first_step] * len(params) if isinstance(first_step, bool) else list(first_step)
    _check_lengths(len(params), grads=grads, filter_dims=dims, first_step=firsts)
    if momentum != 0:
        _check_lengths(len(params), momentum_buffers=buffers)
    if not params:
        return
    keys = _keys(params, "params")
    shapes, dtypes, devices, layouts = zip(*keys, strict=True)
    device = params[0].device
    for i, (other, layout) in enumerate(zip(devices, layouts, strict=True)):
        if layout != torch.strided:
            raise TypeError(f"params[{i}] must be a dense tensor, got layout {layout}")
        if other != device:
            raise ValueError(f"params[{i}] must be on {device}, like params[0], got {other}")
    _check_like(grads, "grads", keys)
    if buffers:
        _check_like(buffers, "momentum_buffers", keys)
    # Caches cannot be traced.
    count, overlapping = (_count_filters, _overlapping) if torch.compiler.is_compiling() else (_counted, _found)
    filters = count(shapes, dtypes, tuple(dims))
    for tensors, name in ((params, "params"), (buffers, "momentum_buffers")):
        for i in overlapping(shapes[: len(tensors)], tuple(map(Tensor.stride, tensors))):
            raise ValueError(f"{name}[{i}] overlaps itself (an expanded view?); pass its contiguous() copy")
    for i in overlapping(shapes, tuple(map(Tensor.stride, grads))):
        grads[i] = grads[i].contiguous()
    if not torch.compiler.is_compiling():
        if len(set(map(id, params))) != len(params):
            raise ValueError("params holds a tensor twice; give every parameter once")
        for tensors, name in ((params, "params"), (grads, "grads"), (buffers, "momentum_buffers")):
            if not have_addresses(tensors):
                for i, tensor in enumerate(tensors):
                    check_address(tensor, f"{name}[{i}]")
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


def _check_finite(value: float, name: str) -> float:
    number = check_number(value, name)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")
    return number


def _check_lr(lr: float | Tensor, device: torch.device) -> Tensor:
    """float64 [1] on ``device``."""
    if not isinstance(lr, Tensor):
        return torch.full((1,), _check_finite(lr, "lr"), dtype=torch.float64, device=device)
    if lr.numel() != 1 or not lr.is_floating_point():
        raise ValueError(
            f"lr must be a number or a floating-point tensor of one element, got {lr.dtype} {tuple(lr.shape)}"
        )
    if lr.device.type == "cpu" != device.type:
        return torch.full((1,), lr.item(), dtype=torch.float64, device=device)
    if lr.device != device:
        raise ValueError(f"lr must be on {device}, like params, or on the CPU, got {lr.device}")
    return lr.double().reshape(1)


def _check_lengths(count: int, **lists: Sequence[object]) -> None:
    for name, values in lists.items():
        if len(values) != count:
            raise ValueError(f"{name} must have one entry per parameter ({count}), got {len(values)}")


def _check_dims(filter_dims: Sequence[int | None]) -> list[int]:
    """-1 stands for None."""
    for i, dim in enumerate(filter_dims):
        if dim is not None and not is_integer(dim):
            raise TypeError(f"filter_dims[{i}] must be an integer or None, got {type(dim).__name__}")
        if dim is not None and dim < 0:
            raise ValueError(f"filter_dims[{i}] must be None or at least 0, got {dim}")
    return [-1 if dim is None else int(dim) for dim in filter_dims]


def _keys(tensors: Sequence[Tensor], name: str) -> list[tuple[object, ...]]:
    """`_FIELDS` of each, in one pass in C: this runs at every step."""
    if not all(isinstance(tensor, Tensor) for tensor in tensors):
        i, wrong = next((i, tensor) for i, tensor in enumerate(tensors) if not isinstance(tensor, Tensor))
        raise TypeError(f"{name}[{i}] must be a tensor, got {type(wrong).__name__}")
    return list(map(attrgetter(*_FIELDS), tensors))


def _check_like(tensors: Sequence[Tensor], name: str, wanted: list[tuple[object, ...]]) -> None:
    found = _keys(tensors, name)
    if found == wanted:
        return
    for i, (has, needs) in enumerate(zip(found, wanted, strict=True)):
        for field, a, b in zip(_FIELDS, has, needs, strict=True):
            if a != b:
                raise ValueError(f"{name}[{i}] must have {field} {b}, like its parameter, got {a}")


def _count_filters(shapes: tuple[torch.Size, ...], dtypes: tuple[torch.dtype, ...], dims: tuple[int, ...]) -> int:
    """F of the masked parameters; refuses what the kernels cannot take."""
    filters = 0
    for i, (shape, dtype, dim) in enumerate(zip(shapes, dtypes, dims, strict=True)):
        if dtype not in DTYPES:
            raise TypeError(f"params[{i}] must be float32, float64, float16 or bfloat16, got {dtype}")
        if len(shape) > MAX_DIMS:
            raise ValueError(f"params[{i}] must have at most {MAX_DIMS} dimensions, got {len(shape)}")
        if dim >= len(shape):
            raise ValueError(f"filter_dims[{i}] must be None or below {len(shape)}, got {dim}")
        if dim >= 0 and shape[dim] > 0 and 0 in shape:
            raise ValueError(f"params[{i}] of shape {tuple(shape)} has filters without elements")
        filters += shape[dim] if dim >= 0 else 0
    return filters


def _overlapping(shapes: tuple[torch.Size, ...], strides: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    """The tensors of which two elements may share an address."""
    return tuple(
        i
        for i, (shape, step) in enumerate(zip(shapes, strides, strict=True))
        if 0 not in shape and not strides_are_disjoint(shape, step)
    )


_counted, _found = lru_cache(maxsize=256)(_count_filters), lru_cache(maxsize=256)(_overlapping)
