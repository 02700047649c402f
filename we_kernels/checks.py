"""Argument checks shared by the public functions: every message names the argument and says what to do."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from numbers import Integral, Real
from typing import TypeGuard

import torch
from torch import Tensor

from .runtime.transfer import Place, upload


def is_integer(value: object) -> TypeGuard[int]:
    """Whether it is an integer, Python's or NumPy's; a bool is none."""
    return type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool))


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a real number, Python's or NumPy's; a bool is none."""
    return type(value) in (float, int) or (isinstance(value, Real) and not isinstance(value, bool))


def check_integer(value: int, name: str) -> int:
    """An integer, as Python's.

    Raises:
        TypeError: not an integer.
    """
    if not is_integer(value):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    return int(value)


def check_count(value: int, name: str) -> int:
    """An integer from 0 that fits into 64 bits with a sign, as Python's.

    Raises:
        TypeError: not an integer. ValueError: out of range.
    """
    count = check_integer(value, name)
    if not 0 <= count < 2**63:
        raise ValueError(f"{name} must be in [0, 2^63 - 1], got {count}")
    return count


def check_number(value: float, name: str) -> float:
    """A number, as Python's float.

    Raises:
        TypeError: not a number.
    """
    if not is_number(value):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    return float(value)


def check_fraction(value: float, name: str) -> float:
    """A number in [0, 1].

    Raises:
        TypeError: not a number. ValueError: NaN or outside [0, 1].
    """
    number = check_number(value, name)
    if not 0.0 <= number <= 1.0:  # False for NaN, too
        raise ValueError(f"{name} must be in [0, 1], got {number}")
    return number


def check_choice(value: str, name: str, choices: Collection[str]) -> str:
    """One of a few names.

    Raises:
        TypeError: not a string. ValueError: none of them.
    """
    *others, last = (f'"{choice}"' for choice in choices)
    allowed = f"{', '.join(others)} or {last}"
    if not isinstance(value, str):
        raise TypeError(f"{name} must be {allowed}, got {type(value).__name__}")
    if value not in choices:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
    return value


def check_vector(tensor: Tensor, name: str, size: int, dtype: torch.dtype, device: torch.device) -> None:
    """A dense 1-d tensor of exactly this size, dtype and device."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}")
    if tuple(tensor.shape) != (size,):
        raise ValueError(f"{name} must have shape ({size},), got {tuple(tensor.shape)}")
    if tensor.device != device:
        raise ValueError(f"{name} must be on {device}, like the weights, got {tensor.device}")


def check_rates(rate: float | Sequence[float] | Tensor, groups: int, device: torch.device) -> Tensor:
    """float64 [groups] on ``device`` from one rate for all groups, one per group, or such a tensor as it is.

    The values of a tensor on a GPU are not read, to not wait for it: the kernels clamp them to [0, 1].
    """
    if isinstance(rate, Tensor):
        check_vector(rate, "rate", groups, torch.float64, device)
        if device.type == "cpu" and not torch.compiler.is_compiling():
            for value in rate.tolist():
                check_fraction(value, "rate")
        return rate.contiguous()
    if isinstance(rate, Sequence) and not isinstance(rate, str):
        if len(rate) != groups:
            raise ValueError(f"rate must have one entry per group ({groups}), got {len(rate)}")
        values = [check_fraction(value, f"rate[{i}]") for i, value in enumerate(rate)]
    else:
        values = [check_fraction(rate, "rate")] * groups
    if torch.compiler.is_compiling():
        return torch.tensor(values, dtype=torch.float64, device=device)
    return upload(tuple(values), torch.float64, Place.current(device))
