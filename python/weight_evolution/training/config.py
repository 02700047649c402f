"""What defines a run: two runs of equal configuration and seed give equal results on a CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from .arguments import decay, momentum, non_negative_float, non_negative_int, option, positive_float, positive_int
from .data import DATA_HELP, IMAGE_SIZE_HELP
from .errors import UserError
from .models import MODEL_HELP

LR_SCHEDULES = ("step", "cosine", "constant")
STEP_FRACTIONS = (0.3, 0.6, 0.9)
"""Of the epochs; 60, 120 and 180 of the published 200."""
OPTIMIZERS = ("sgd", "adamw", "unit-adamw")
AMP = ("bf16", "fp16")
SGD_RATES = {"lr": 0.1, "weight_decay": 5e-4}
"""Published for CIFAR."""
ADAMW_RATES = {"lr": 1e-3, "weight_decay": 1e-2}
"""PyTorch's defaults."""


def rates(optimizer: str) -> dict[str, float]:
    """What the command line takes where it is not told a learning rate or a weight decay."""
    return SGD_RATES if optimizer == "sgd" else ADAMW_RATES


def _rate(name: str, type: Callable[[str], object]) -> Any:
    help = f"default {SGD_RATES[name]:g}; of adamw and unit-adamw {ADAMW_RATES[name]:g}"
    return option(SGD_RATES[name], help, default=None, type=type)


@dataclass(frozen=True)
class TrainingConfig:
    """Options of a run. The defaults are the published recipe for CIFAR (arXiv 2110.04492 and its program)."""

    model: str = option("resnet20", MODEL_HELP)
    data: str = option("digits", DATA_HELP, metavar="NAME")
    image_size: int | None = option(None, IMAGE_SIZE_HELP, type=positive_int, metavar="N")
    method: str = "baseline"
    """Methods joined by ``+``; "baseline" is none."""
    method_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Method name -> its options: plain numbers, strings and lists."""
    epochs: int = option(200, type=positive_int)
    batch_size: int = option(128, type=positive_int)
    optimizer: str = option("sgd", "unit-adamw: new weights have an age of their own", choices=OPTIMIZERS)
    lr: float = _rate("lr", positive_float)
    momentum: float = option(0.9, "of sgd", type=momentum)
    nesterov: bool = option(True, "plain momentum")
    weight_decay: float = _rate("weight_decay", non_negative_float)
    lr_schedule: str = option("step", choices=LR_SCHEDULES)
    lr_milestones: list[int] | None = option(
        None, "of step (30%%, 60%%, 90%% of the epochs)", type=positive_int, nargs="+", metavar="E"
    )
    """Epochs at which "step" multiplies by `lr_gamma`; 30%, 60% and 90% of the epochs when left out."""
    lr_gamma: float = option(0.1, "of step", type=positive_float)
    warmup_epochs: int = option(0, "linear warm-up", type=non_negative_int)
    augment: bool = option(True, "no random crops and flips")
    amp: str | None = option(
        None, "run the network in this precision in training (fp16: on CUDA, with scaled losses)", choices=AMP
    )
    ema: float | None = option(
        None, "also measure an average of the weights that keeps D of itself at each step", type=decay, metavar="D"
    )
    channels_last: bool = option(False, "memory format of images and weights: NHWC")
    compile: bool = option(False, "train through torch.compile")

    def __post_init__(self) -> None:
        if self.lr_schedule not in LR_SCHEDULES:
            raise UserError(f"lr_schedule must be one of {', '.join(LR_SCHEDULES)}, got {self.lr_schedule!r}")
        if self.optimizer not in OPTIMIZERS:
            raise UserError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {self.optimizer!r}")
        if self.amp is not None and self.amp not in AMP:
            raise UserError(f"amp must be one of {', '.join(AMP)}, got {self.amp!r}")
        if self.nesterov and self.momentum == 0:
            raise UserError("Nesterov momentum needs --momentum above 0; pass --no-nesterov")

    def learning_rate(self, epoch: int) -> float:
        """Of an epoch, from 0; a linear warm-up multiplies the first ones."""
        rate = self.lr
        if self.lr_schedule == "step":
            drops = self.lr_milestones
            if drops is None:
                drops = [max(1, round(fraction * self.epochs)) for fraction in STEP_FRACTIONS]
            rate *= self.lr_gamma ** sum(epoch >= drop for drop in drops)
        elif self.lr_schedule == "cosine":
            rate *= 0.5 * (1.0 + math.cos(math.pi * epoch / self.epochs))
        return rate * min(1.0, (epoch + 1) / (self.warmup_epochs + 1))

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for a checkpoint or JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingConfig:
        """The inverse of `to_dict`."""
        values = completed(values)
        known = {entry.name for entry in fields(cls)}
        if set(values) != known:
            raise UserError(f"the configuration has unknown or missing entries: {sorted(known ^ set(values))}")
        for name, hint in get_type_hints(cls).items():
            kinds, value = _kinds(hint), values[name]
            if not isinstance(value, kinds) and not (float in kinds and type(value) is int):
                raise UserError(f"the configuration's {name} is {value!r}")
        for method, options in values["method_options"].items():
            if not isinstance(options, dict):
                raise UserError(f"the configuration's method_options[{method!r}] is {options!r}")
        return cls(**values)


LATER = ("image_size", "optimizer", "amp", "ema", "channels_last", "compile")
"""Entries that configurations of earlier versions are without."""


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration, that of an earlier version with the defaults of what it had no entry for."""
    return {name: getattr(TrainingConfig, name) for name in LATER} | dict(values)


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


def _kinds(hint: Any) -> tuple[type, ...]:
    """The classes of a type such as ``list[int] | None``."""
    parts = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    return tuple(get_origin(part) or part for part in parts)
