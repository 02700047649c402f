"""Weight evolution as a method of the trainer."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import nn
from torch.optim import Optimizer

from we_kernels import CROSSOVERS
from weight_evolution import StagedSigmoid, WeightEvolution
from weight_evolution.evolution import EvolutionOptions, Schedule

from ..arguments import fraction, option, positive_float, positive_int
from ..errors import UserError, user_errors
from .base import Method, Training, timed

_PUBLISHED = EvolutionOptions()
_SCHEDULES = {"cifar": StagedSigmoid.cifar, "imagenet": StagedSigmoid.imagenet}
_IMAGENET_RATE = 0.02
"""The published base rate for ImageNet, of all kinds."""
_RATES = ("conv_rate", "norm_scale_rate", "norm_shift_rate")


def _shift_rate(text: str) -> float | str:
    return text if text == "inferior" else fraction(text)


def _rate_option(default: float | str, more: str = "", type: Callable[[str], object] = fraction) -> Any:
    help = f"base rate ({default}; {_IMAGENET_RATE} for imagenet){more}"
    return option(default, help, default=None, type=type, metavar="R")


@dataclass(frozen=True)
class Options:
    """The options of the method, as a checkpoint holds them."""

    crossover: str = option(_PUBLISHED.crossover, choices=CROSSOVERS)
    conv_rate: float = _rate_option(_PUBLISHED.conv_rate)
    norm_scale_rate: float = _rate_option(_PUBLISHED.norm_scale_rate)
    norm_shift_rate: float | str = _rate_option(
        _PUBLISHED.norm_shift_rate, ', or "inferior": only for channels whose filter is inferior', _shift_rate
    )
    linear_rate: float = option(_PUBLISHED.linear_rate, "0: off", type=fraction, metavar="R")
    local_ratio: float = option(_PUBLISHED.local_ratio, type=fraction, metavar="R")
    starvation_divisor: float | None = option(_PUBLISHED.starvation_divisor, type=positive_float, metavar="D")
    schedule: dict[str, Any] | None = None
    """Milestones, divisors and tau of a `StagedSigmoid`; None: the base rates throughout."""
    every: int = option(1, "N epochs", flag="evolve_every", type=positive_int, metavar="N")
    optimizer_state: str = option(
        "keep", "momentum of replaced elements; published is keep", choices=("keep", "fill", "reset")
    )
    epochs: int | None = None


class EvolutionMethod(Method):
    """`WeightEvolution` after every n-th epoch but the last: the network that remains is the one that was measured."""

    name = "evolution"
    kind = Options
    said = ("evolution_replaced_conv", "evolved {}")
    title = "weight evolution (--method evolution)"
    options_of_epochs = ("epochs", "schedule")

    def __init__(self, training: Training, options: Mapping[str, Any]) -> None:
        super().__init__(training, options)
        self._every: int = options["every"]
        self.evolution = make_evolution(training.model, training.optimizer, options)

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
        group = super().add_arguments(parser)
        group.add_argument(
            "--schedule",
            choices=("cifar", "imagenet", "constant"),
            default="cifar",
            help="published stages, scaled to --epochs (default cifar), or the base rates throughout",
        )
        group.add_argument("--milestones", type=positive_int, nargs="*", metavar="E", help="own stages: first epochs")
        group.add_argument("--divisors", type=positive_float, nargs="+", metavar="D", help="own stages: rate divisors")
        group.add_argument("--tau", type=positive_float, metavar="T", help="own stages: epochs per unit of the sigmoid")
        return group

    @classmethod
    def options(cls, arguments: argparse.Namespace) -> dict[str, Any]:
        options = super().options(arguments) | {"schedule": _schedule_options(arguments)}
        for name in [name for name in _RATES if options[name] is None]:
            options[name] = _IMAGENET_RATE if arguments.schedule == "imagenet" else getattr(Options, name)
        return options

    def after_epoch(self, epoch: int) -> dict[str, float]:
        if (epoch + 1) % self._every:
            return {}
        report, seconds = timed(self.device, lambda: self.evolution.step(epoch=epoch))
        if report is None:
            return {}
        columns: dict[str, float] = {"evolution_seconds": seconds}
        for kind, rate in report.rates.items():
            names = [name for name, of in report.kinds.items() if of == kind]
            columns[f"evolution_rate_{kind}"] = rate
            columns[f"evolution_threshold_{kind}"] = report.thresholds[kind]
            columns[f"evolution_replaced_{kind}"] = sum(report.inferior[name] for name in names)
        return columns

    @classmethod
    def summarize(cls, history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        return {"evolution_seconds": sum(row.get("evolution_seconds", 0.0) for row in history)}

    def state_dict(self) -> dict[str, Any]:
        return self.evolution.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        # The trainer has compared all options.
        self.evolution.load_state_dict(state, strict=False)


def make_evolution(model: nn.Module, optimizer: Optimizer | None, options: Mapping[str, Any]) -> WeightEvolution:
    """The `WeightEvolution` of these options.

    Raises:
        UserError: the options or the model do not fit.
    """
    later = {"epochs"}  # checkpoints of earlier versions are without
    if missing := [entry.name for entry in fields(Options) if entry.name not in {*options, *later}]:
        raise UserError(f"the options of --method evolution have no {missing[0]!r}")
    with user_errors():
        own = asdict(Options(**options))
        del own["every"]  # the trainer's
        own["schedule"] = make_schedule(own["schedule"])
        if optimizer is None:
            own["optimizer_state"] = "keep"
        used = None if own["optimizer_state"] == "keep" else optimizer
        _tell_of_stages(own["schedule"], own["epochs"])
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the schedule's stages")  # said in the words of the command line
            return WeightEvolution(model, optimizer=used, measure_after=False, **own)


def _tell_of_stages(schedule: Schedule, epochs: int | None) -> None:
    if epochs is not None and isinstance(schedule, StagedSigmoid) and (beyond := schedule.beyond(epochs)):
        never = " and ".join(map(str, beyond))
        print(f"warning: --milestones {never} are never reached in --epochs {epochs}", file=sys.stderr, flush=True)


def make_schedule(options: Mapping[str, Any] | None) -> Schedule:
    """A `StagedSigmoid` of these milestones, divisors and tau; None: the base rates throughout."""
    if options is None:
        return _constant
    return StagedSigmoid(tuple(options["milestones"]), tuple(options["divisors"]), options["tau"])


def scaled_schedule(name: str, epochs: int) -> dict[str, Any]:
    """The published stages for "cifar" or "imagenet", stretched to ``epochs``; plain values."""
    schedule = _SCHEDULES[name](epochs)
    return {"milestones": list(schedule.milestones), "divisors": list(schedule.divisors), "tau": schedule.tau}


def _schedule_options(arguments: argparse.Namespace) -> dict[str, Any] | None:
    own = {"milestones": arguments.milestones, "divisors": arguments.divisors, "tau": arguments.tau}
    if any(value is not None for value in own.values()):
        if missing := [f"--{name}" for name, value in own.items() if value is None]:
            raise UserError(f"own stages need --milestones, --divisors and --tau; missing {' and '.join(missing)}")
        return own
    return None if arguments.schedule == "constant" else scaled_schedule(arguments.schedule, arguments.epochs)


def _constant(base_rate: float, epoch: int) -> float:
    return base_rate
