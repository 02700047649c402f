"""What defines a run: two runs of equal configuration and seed give equal results on a CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from .errors import UserError
from .learning_rate import LR_SCHEDULES


@dataclass(frozen=True)
class TrainingConfig:
    """Options of a run. The defaults are the published recipe for CIFAR (arXiv 2110.04492 and its program)."""

    model: str = "resnet20"
    data: str = "digits"
    method: str = "baseline"
    """Methods joined by ``+``; "baseline" is none."""
    method_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Method name -> its options: plain numbers, strings and lists."""
    epochs: int = 200
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = True
    weight_decay: float = 5e-4
    lr_schedule: str = "step"
    lr_milestones: list[int] | None = None
    """Epochs at which "step" multiplies by `lr_gamma`; 30%, 60% and 90% of the epochs when left out."""
    lr_gamma: float = 0.1
    warmup_epochs: int = 0
    augment: bool = True

    def __post_init__(self) -> None:
        if self.lr_schedule not in LR_SCHEDULES:
            raise UserError(f"lr_schedule must be one of {', '.join(LR_SCHEDULES)}, got {self.lr_schedule!r}")
        if self.nesterov and self.momentum == 0:
            raise UserError("Nesterov momentum needs --momentum above 0; pass --no-nesterov")

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for a checkpoint or JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingConfig:
        """The inverse of `to_dict`."""
        known = {entry.name for entry in fields(cls)}
        if set(values) != known:
            raise UserError(f"the configuration has unknown or missing entries: {sorted(known ^ set(values))}")
        for entry in fields(cls):
            default = getattr(cls, entry.name, None)
            kind = dict if entry.name == "method_options" else (list, type(None)) if default is None else type(default)
            value = values[entry.name]
            if not isinstance(value, kind) and not (kind is float and type(value) is int):
                raise UserError(f"the configuration's {entry.name} is {value!r}")
        for method, options in values["method_options"].items():
            if not isinstance(options, dict):
                raise UserError(f"the configuration's method_options[{method!r}] is {options!r}")
        return cls(**values)


def first_difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str | None:
    """In words, the first entry in which two configurations differ; those of groups come last, as others may follow
    from the single ones.
    """
    keys = [*here, *(key for key in there if key not in here)]
    for key in sorted(keys, key=lambda key: isinstance(here.get(key), Mapping)):
        a, b = there.get(key), here.get(key)
        if a != b:
            if isinstance(a, Mapping) and isinstance(b, Mapping):
                return f"{key}: {first_difference(a, b)}"
            return f"{key} is {a!r} there and {b!r} here"
    return None
