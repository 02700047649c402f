"""The training methods by name; "baseline" is none of them, ``a+b`` is both."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from ..errors import UserError
from .asynchronous import AsynchronousMethod
from .base import Method, Training
from .distillation import DistillationMethod
from .evolution import EvolutionMethod
from .grafting import GraftingMethod
from .low_rank import LowRankMethod
from .reactivation import ReactivationMethod

BASELINE = "baseline"
METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        EvolutionMethod,
        LowRankMethod,
        GraftingMethod,
        DistillationMethod,
        AsynchronousMethod,
        ReactivationMethod,
    )
}

__all__ = [
    "BASELINE",
    "METHODS",
    "DistillationMethod",
    "GraftingMethod",
    "Method",
    "Training",
    "make_methods",
    "method_names",
    "method_options",
]


def method_names(method: str) -> list[str]:
    """The methods that ``method`` joins by ``+``.

    Raises:
        UserError: one of them is unknown or given twice.
    """
    if method == BASELINE:
        return []
    names = method.split("+")
    for name in names:
        if name not in METHODS:
            raise UserError(f"--method must be {BASELINE} or of {', '.join(METHODS)} (joined by +), got {method!r}")
    if len(set(names)) < len(names):
        raise UserError(f"--method names a method twice: {method!r}")
    return names


def method_options(method: str, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Options of each method from the command line, as plain values."""
    return {name: METHODS[name].options(arguments) for name in method_names(method)}


def make_methods(method: str, options: Mapping[str, Mapping[str, Any]], training: Training) -> dict[str, Method]:
    """The methods by name, attached to a network in training."""
    return {name: METHODS[name](training, options[name]) for name in method_names(method)}
