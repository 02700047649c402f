"""The options of a weight evolution, with the published defaults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, is_dataclass
from typing import Any

from torch import Tensor

from we_kernels import CROSSOVERS, FilterBank
from we_kernels.checks import check_choice, check_fraction

from ..arguments import check_count, check_flag, check_positive
from .schedule import Schedule, StagedSigmoid

Importance = Callable[[FilterBank], Tensor]
"""(bank) -> float32 [F] on the weights' device, not negative: the more, the less a filter may be replaced."""


@dataclass(frozen=True)
class EvolutionOptions:
    """What decides about a step, as `WeightEvolution` documents it; the defaults are the published ones for CIFAR.

    Raises:
        TypeError, ValueError: name the option and say what it must be.
    """

    conv_rate: float = 0.2
    norm_scale_rate: float = 0.05
    norm_shift_rate: float | str = 0.05
    linear_rate: float = 0.0
    local_ratio: float = 0.1
    starvation_divisor: float | None = 2.0
    schedule: Schedule = field(default_factory=StagedSigmoid.cifar)
    crossover: str = "paper"
    importance: str | Importance = "l1"
    check_finite: bool = True
    epochs: int | None = None

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {
            name: check_fraction(getattr(self, name), name)
            for name in ("conv_rate", "norm_scale_rate", "linear_rate", "local_ratio")
        }
        if isinstance(self.norm_shift_rate, str):
            if self.norm_shift_rate != "inferior":
                raise ValueError(f'norm_shift_rate must be in [0, 1] or "inferior", got {self.norm_shift_rate!r}')
        else:
            checked["norm_shift_rate"] = check_fraction(self.norm_shift_rate, "norm_shift_rate")
        if self.starvation_divisor is not None:
            checked["starvation_divisor"] = check_positive(self.starvation_divisor, "starvation_divisor")
        if not callable(self.schedule):
            raise TypeError(
                f"schedule must be a callable (base_rate, epoch) -> rate, got {type(self.schedule).__name__}"
            )
        check_choice(self.crossover, "crossover", CROSSOVERS)
        if self.importance != "l1" and not callable(self.importance):
            raise (ValueError if isinstance(self.importance, str) else TypeError)(
                f'importance must be "l1" or a callable (bank) -> float32 [F], got {self.importance!r}'
            )
        check_flag(self.check_finite, "check_finite")
        if self.epochs is not None:
            checked["epochs"] = check_count(self.epochs, "epochs", at_least=1)
        for name, value in checked.items():
            object.__setattr__(self, name, value)

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
        return {
            "conv_rate": self.conv_rate,
            "norm_scale_rate": self.norm_scale_rate,
            "norm_shift_rate": self.norm_shift_rate,
            "linear_rate": self.linear_rate,
            "local_ratio": self.local_ratio,
            "starvation_divisor": self.starvation_divisor,
            "crossover": self.crossover,
            "importance": self.importance if isinstance(self.importance, str) else _describe(self.importance),
            "schedule": _describe(self.schedule),
        }


def _describe(function: object) -> str:
    """What tells functions apart: all fields of a dataclass (`StagedSigmoid`), else the name."""
    if is_dataclass(function):
        return repr(function)
    return str(getattr(function, "__qualname__", type(function).__qualname__))
