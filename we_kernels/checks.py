"""Argument checks shared by the public functions: every message names the argument and says what to do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import TypeGuard

import torch
from torch import Tensor

from .layout import Segments
from .transfer import Place, upload

RULES = ("paper", "released")


def is_integer(value: object) -> TypeGuard[int]:
    """Whether it is an integer, Python's or NumPy's; a bool is none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a real number, Python's or NumPy's; a bool is none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_integer(value: int, name: str) -> int:
    """An integer, as Python's.

    Raises:
        TypeError: not an integer.
    """
    if not is_integer(value):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    return int(value)


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


def check_rule(rule: str, name: str = "rule") -> str:
    """One of the crossover rules."""
    if rule not in RULES:
        raise ValueError(f'{name} must be "paper" or "released", got {rule!r}')
    return rule


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


def check_starvation(starvation: Tensor | None, limit: float | None, groups: int, device: torch.device) -> float:
    """The starvation counter int32 [groups] and its limit go together; returns the limit (inf when off)."""
    if starvation is None:
        if limit is not None:
            raise ValueError("starvation_limit needs starvation, an int32 counter tensor (or leave both out)")
        return math.inf
    check_vector(starvation, "starvation", groups, torch.int32, device)
    if not starvation.is_contiguous():
        raise ValueError("starvation must be contiguous")
    if limit is None:
        raise ValueError("starvation needs starvation_limit: (number of conv layers) / starvation_divisor")
    number = check_number(limit, "starvation_limit")
    if not number > 0:
        raise ValueError(f"starvation_limit must be positive, got {number}")
    return number


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


def check_local_ratios(local_ratio: float | Sequence[float | None] | None, groups: int) -> list[float]:
    """One ratio per group; -1 stands for None, no local selection."""
    if isinstance(local_ratio, Sequence):
        if len(local_ratio) != groups:
            raise ValueError(f"local_ratio must have one entry per group ({groups}), got {len(local_ratio)}")
        ratios = list(local_ratio)
    else:
        ratios = [local_ratio] * groups
    return [-1.0 if ratio is None else check_fraction(ratio, "local_ratio") for ratio in ratios]


def check_zero_is_inferior(flag: bool | Sequence[bool], groups: int) -> list[bool]:
    """One flag per group."""
    if isinstance(flag, bool):
        return [flag] * groups
    flags = list(flag) if isinstance(flag, Sequence) else None
    if flags is None or not all(isinstance(entry, bool) for entry in flags):
        raise TypeError(f"zero_is_inferior must be True, False or a list of them, one per group, got {flag!r}")
    if len(flags) != groups:
        raise ValueError(f"zero_is_inferior must have one entry per group ({groups}), got {len(flags)}")
    return flags


def check_donors(donor: Tensor, segments: Segments) -> None:
    """Every donor is -1 or a row of its own layer that is not itself replaced. Waits for the device.

    Raises:
        ValueError: names the first filter that breaks this.
    """
    layer = segments.layer_of_filter(donor.device)
    size, start, _ = segments.table_on(donor.device)[layer].unbind(1)
    outside = (donor < -1) | (donor >= size)
    replaced_donor = donor[(start + donor.clamp(min=0)).clamp(max=segments.num_filters - 1)] >= 0
    bad = (outside | ((donor >= 0) & replaced_donor)).nonzero()
    if bad.numel() == 0:
        return
    index = int(bad[0])
    row, value, count = index - int(start[index]), int(donor[index]), int(size[index])
    where = f"donor[{index}] (row {row} of layer {int(layer[index])}) is {value}"
    if not -1 <= value < count:
        raise ValueError(f"{where}; it must be -1 or a row of that layer, 0 to {count - 1}")
    raise ValueError(f"{where}, a row that is itself replaced; a donor must keep its own weights")
