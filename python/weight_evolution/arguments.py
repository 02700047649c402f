"""Checks of arguments: each returns the plain value, or raises what names the argument.

TypeError stands for a value of the wrong type, ValueError for one out of range. Numbers are Python's or NumPy's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from we_kernels.checks import check_integer, check_number

_LIMIT = 2**63
"""Counters live in int64 tensors."""


def check_count(value: int, name: str, at_least: int = 0) -> int:
    """An integer from ``at_least`` that fits into 64 bits."""
    count = check_integer(value, name)
    if count < at_least:
        raise ValueError(f"{name} must be an integer from {at_least}, got {count}")
    if count >= _LIMIT:
        raise ValueError(f"{name} must be below 2^63, got {count}")
    return count


def check_positive(value: float, name: str) -> float:
    """A finite number above 0."""
    number = check_number(value, name)
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be a positive number, got {number}")
    return number


def check_not_negative(value: float, name: str) -> float:
    """A finite number from 0."""
    number = check_number(value, name)
    if not 0 <= number < math.inf:
        raise ValueError(f"{name} must be a finite number from 0, got {number}")
    return number


def check_share(value: float, name: str) -> float:
    """A number in (0, 1]: a share of which something is left."""
    number = check_number(value, name)
    if not 0 < number <= 1:
        raise ValueError(f"{name} must be in (0, 1], got {number}")
    return number


def check_flag(value: bool, name: str) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return value


def check_model(model: nn.Module, name: str = "model") -> nn.Module:
    """A module."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module, got {type(model).__name__}")
    return model


def check_optimizer(optimizer: Optimizer) -> Optimizer:
    """An optimizer of torch's kind."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
    return optimizer


def check_inputs(example_inputs: Tensor | tuple[Tensor, ...] | None) -> tuple[Tensor, ...] | None:
    """The arguments of forward as a tuple; None for none."""
    if isinstance(example_inputs, Tensor):
        return (example_inputs,)
    if example_inputs is not None and not isinstance(example_inputs, tuple):
        raise TypeError(f"example_inputs must be a tensor or a tuple of them, got {type(example_inputs).__name__}")
    return example_inputs


def checked(default: Any, check: Callable[..., Any], *limits: Any) -> Any:
    """A field of `Checked` options: ``check(value, name, *limits)`` returns the plain value."""
    return field(default=default, metadata={"check": check, "limits": limits})


Kind = TypeVar("Kind", bound="Checked")


@dataclass(frozen=True)
class Checked:
    """Options of a method, each with its published default and its check.

    Raises:
        TypeError, ValueError: name the option and say what it must be.
    """

    @classmethod
    def of(cls: type[Kind], arguments: Mapping[str, Any]) -> Kind:
        """From the ``locals()`` of a function that has all options, and perhaps more, as arguments."""
        return cls(**{entry.name: arguments[entry.name] for entry in fields(cls)})

    def __post_init__(self) -> None:
        for entry in fields(self):
            if entry.metadata:
                value = entry.metadata["check"](getattr(self, entry.name), entry.name, *entry.metadata["limits"])
                object.__setattr__(self, entry.name, value)


def unless_none(value: Any, name: str, check: Callable[..., Any], *limits: Any) -> Any:
    """None, or what the check returns."""
    return None if value is None else check(value, name, *limits)
