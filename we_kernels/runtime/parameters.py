"""Checks of parameters with what belongs to each of them: gradients, an optimizer's state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from operator import attrgetter

import torch
from torch import Tensor

from ..checks import check_number
from .layout import DTYPES, MAX_DIMS
from .memory import strides_are_disjoint
from .weights import check_addresses

_FIELDS = ("shape", "dtype", "device", "layout")

Shapes = tuple[torch.Size, ...]


def check_parameters(
    params: Sequence[Tensor], grads: list[Tensor], states: Mapping[str, Sequence[Tensor]]
) -> tuple[Shapes, torch.device]:
    """Shapes and the one device of parameters, of which there is at least one.

    Gradients that overlap themselves (those of a sum, expanded) are replaced by copies in the list.

    Args:
        params: distinct tensors; no element is there twice.
        grads: one per parameter, of its shape, dtype and device.
        states: name -> the same, without overlaps; or nothing at all.

    Raises:
        TypeError, ValueError: name the tensor.
    """
    states = {name: tensors for name, tensors in states.items() if tensors}
    check_lengths(len(params), grads=grads, **states)
    keys = _keys(params, "params")
    shapes, dtypes, devices, layouts = zip(*keys, strict=True)
    device: torch.device = devices[0]
    for i, (other, layout) in enumerate(zip(devices, layouts, strict=True)):
        if layout != torch.strided:
            raise TypeError(f"params[{i}] must be a dense tensor, got layout {layout}")
        if other != device:
            raise ValueError(f"params[{i}] must be on {device}, like params[0], got {other}")
    # Caches cannot be traced.
    tracing = torch.compiler.is_compiling()
    check_forms, overlapping = (_check_forms, _overlapping) if tracing else (_checked_forms, _found)
    check_forms(shapes, dtypes)
    for name, tensors in (("grads", grads), *states.items()):
        _check_like(tensors, name, keys)
    for name, tensors in (("params", params), *states.items()):
        for i in overlapping(shapes, tuple(map(Tensor.stride, tensors))):
            raise ValueError(f"{name}[{i}] overlaps itself (an expanded view?); pass its contiguous() copy")
    for i in overlapping(shapes, tuple(map(Tensor.stride, grads))):
        grads[i] = grads[i].contiguous()
    if not tracing:
        if len(set(map(id, params))) != len(params):
            raise ValueError("params holds a tensor twice; give every parameter once")
        for name, tensors in (("params", params), ("grads", grads), *states.items()):
            check_addresses(tensors, name)
    return shapes, device


def check_lengths(count: int, **lists: Sequence[object]) -> None:
    """One entry per parameter.

    Raises:
        ValueError: names the list.
    """
    for name, values in lists.items():
        if len(values) != count:
            raise ValueError(f"{name} must have one entry per parameter ({count}), got {len(values)}")


def check_finite(value: float, name: str) -> float:
    """A finite number, as Python's float.

    Raises:
        TypeError: not a number. ValueError: infinite or NaN.
    """
    number = check_number(value, name)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")
    return number


def check_lr_tensor(lr: Tensor, device: torch.device) -> Tensor:
    """A tensor of one element on ``device`` or on the CPU, as it is.

    Raises:
        ValueError: of another size, dtype or device.
    """
    if lr.numel() != 1 or not lr.is_floating_point():
        raise ValueError(
            f"lr must be a number or a floating-point tensor of one element, got {lr.dtype} {tuple(lr.shape)}"
        )
    if lr.device.type != "cpu" and lr.device != device:
        raise ValueError(f"lr must be on {device}, like params, or on the CPU, got {lr.device}")
    return lr


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


def _check_forms(shapes: Shapes, dtypes: tuple[torch.dtype, ...]) -> None:
    """Refuses what the kernels cannot take."""
    for i, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True)):
        if dtype not in DTYPES:
            raise TypeError(f"params[{i}] must be float32, float64, float16 or bfloat16, got {dtype}")
        if len(shape) > MAX_DIMS:
            raise ValueError(f"params[{i}] must have at most {MAX_DIMS} dimensions, got {len(shape)}")


def _overlapping(shapes: Shapes, strides: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    """The tensors of which two elements may share an address."""
    return tuple(
        i
        for i, (shape, step) in enumerate(zip(shapes, strides, strict=True))
        if 0 not in shape and not strides_are_disjoint(shape, step)
    )


_checked_forms, _found = lru_cache(maxsize=256)(_check_forms), lru_cache(maxsize=256)(_overlapping)
