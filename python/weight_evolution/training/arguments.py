"""Types of command line values; each error says what the value must be."""

from __future__ import annotations

import argparse
import math
from dataclasses import fields
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options", bound="DataclassInstance")


def options_of(kind: type[Options], arguments: argparse.Namespace, **others: Any) -> Options:
    """A dataclass of options: a field that is not among ``others`` is the command line's option of its name."""
    names = [entry.name for entry in fields(kind) if entry.name not in others]
    return kind(**{name: getattr(arguments, name) for name in names}, **others)


def fraction(text: str) -> float:
    """A number in [0, 1]."""
    return _number(text, "a number in [0, 1]", 0.0, 1.0)


def positive_float(text: str) -> float:
    """A finite number above 0."""
    value = _number(text, "a positive number", 0.0, math.inf)
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text!r}")
    return value


def non_negative_float(text: str) -> float:
    """A finite number from 0."""
    value = _number(text, "a number from 0", 0.0, math.inf)
    if value == math.inf:
        raise argparse.ArgumentTypeError(f"must be finite, got {text!r}")
    return value


def momentum(text: str) -> float:
    """A number in [0, 1)."""
    value = _number(text, "a number in [0, 1)", 0.0, 1.0)
    if value == 1.0:
        raise argparse.ArgumentTypeError(f"must be below 1, got {text!r}")
    return value


def positive_int(text: str) -> int:
    """An integer from 1."""
    return _integer(text, 1)


def non_negative_int(text: str) -> int:
    """An integer from 0."""
    return _integer(text, 0)


def _number(text: str, what: str, low: float, high: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"must be {what}, got {text!r}")
    return value


def _integer(text: str, low: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if value < low:
        raise argparse.ArgumentTypeError(f"must be an integer from {low}, got {text!r}")
    return value
