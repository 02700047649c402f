"""The options of a weight evolution, with the published defaults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch import Tensor

from we_kernels import CROSSOVERS, FilterBank
from we_kernels.checks import check_choice, check_fraction

from ..arguments import Checked, check_count, check_flag, check_positive, checked, unless_none
from .schedule import Schedule, StagedSigmoid

Importance = Callable[[FilterBank], Tensor]
"""(bank) -> float32 [F] on the weights' device, not negative: the more, the less a filter may be replaced."""


def _check_shift_rate(value: float | str, name: str) -> float | str:
    if not isinstance(value, str):
        return check_fraction(value, name)
    if value != "inferior":
        raise ValueError(f'{name} must be in [0, 1] or "inferior", got {value!r}')
    return value


def _check_schedule(value: Schedule, name: str) -> Schedule:
    if not callable(value):
        raise TypeError(f"{name} must be a callable (base_rate, epoch) -> rate, got {type(value).__name__}")
    return value


def _check_importance(value: str | Importance, name: str) -> str | Importance:
    if value != "l1" and not callable(value):
        raise (ValueError if isinstance(value, str) else TypeError)(
            f'{name} must be "l1" or a callable (bank) -> float32 [F], got {value!r}'
        )
    return value


@dataclass(frozen=True)
class EvolutionOptions(Checked):
    """What decides about a step, as `WeightEvolution` documents it; the defaults are the published ones for CIFAR."""

    conv_rate: float = checked(0.2, check_fraction)
    norm_scale_rate: float = checked(0.05, check_fraction)
    norm_shift_rate: float | str = checked(0.05, _check_shift_rate)
    linear_rate: float = checked(0.0, check_fraction)
    local_ratio: float = checked(0.1, check_fraction)
    starvation_divisor: float | None = checked(2.0, unless_none, check_positive)
    schedule: Schedule = checked(StagedSigmoid.cifar(), _check_schedule)
    crossover: str = checked("paper", check_choice, CROSSOVERS)
    importance: str | Importance = checked("l1", _check_importance)
    check_finite: bool = checked(True, check_flag)
    epochs: int | None = checked(None, unless_none, check_count, 1)

    @property
    def base_rates(self) -> dict[str, float]:
        """Kind -> base rate."""
        shift = self.norm_shift_rate
        return {
            "conv": self.conv_rate,
            "norm_scale": self.norm_scale_rate,
            "norm_shift": float(EvolutionOptions.norm_shift_rate if isinstance(shift, str) else shift),
            "linear": self.linear_rate,
        }

    @property
    def only_inferior_shifts(self) -> bool:
        """Whether shifts follow the filter of their channel."""
        return self.norm_shift_rate == "inferior"

    def rates(self, kinds: list[str], epoch: int) -> dict[str, float]:
        """Kind -> scheduled rate after this epoch."""
        base = self.base_rates
        return {
            kind: check_fraction(self.schedule(base[kind], epoch), f"schedule({kind} rate, epoch {epoch})")
            for kind in kinds
        }

    def to_dict(self) -> dict[str, Any]:
        """Those that change results, as plain values, for a saved state; functions by their names."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        del values["check_finite"], values["epochs"]
        return {name: _describe(value) if callable(value) else value for name, value in values.items()}


def _describe(function: object) -> str:
    """What tells functions apart: all fields of a dataclass (`StagedSigmoid`), else the name."""
    if is_dataclass(function):
        return repr(function)
    return str(getattr(function, "__qualname__", type(function).__qualname__))
