"""Weight evolution as a method of the trainer."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import nn
from torch.optim import Optimizer

from we_kernels import CROSSOVERS
from weight_evolution import StagedSigmoid, WeightEvolution
from weight_evolution.evolution import EvolutionOptions, Schedule

from ..arguments import fraction, options_of, positive_float, positive_int
from ..errors import UserError
from .base import Method, timed

_PUBLISHED = EvolutionOptions()
_SCHEDULES = {"cifar": (StagedSigmoid.cifar(), 200), "imagenet": (StagedSigmoid.imagenet(), 90)}
_IMAGENET_RATE = 0.02
"""The published base rate for ImageNet, of all kinds."""
_DEFAULT = "default %(default)s"
_RATES = ("conv_rate", "norm_scale_rate", "norm_shift_rate")


@dataclass(frozen=True)
class Options:
    """The options of the method, as a checkpoint holds them."""

    crossover: str = _PUBLISHED.crossover
    conv_rate: float = _PUBLISHED.conv_rate
    norm_scale_rate: float = _PUBLISHED.norm_scale_rate
    norm_shift_rate: float | str = _PUBLISHED.norm_shift_rate
    linear_rate: float = _PUBLISHED.linear_rate
    local_ratio: float = _PUBLISHED.local_ratio
    starvation_divisor: float | None = _PUBLISHED.starvation_divisor
    schedule: dict[str, Any] | None = None
    """Milestones, divisors and tau of a `StagedSigmoid`; None: the base rates throughout."""
    every: int = 1
    optimizer_state: str = "keep"
    epochs: int | None = None


class EvolutionMethod(Method):
    """`WeightEvolution` after every n-th epoch but the last: the network that remains is the one that was measured."""

    name = "evolution"
    options_of_epochs = ("epochs", "schedule")

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, options: Mapping[str, Any], input_size: Sequence[int]
    ) -> None:
        super().__init__(model, optimizer, options, input_size)
        self._every: int = options["every"]
        self.evolution = make_evolution(model, optimizer, options)

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group("weight evolution (--method evolution)")
        default = Options()
        group.add_argument("--crossover", choices=CROSSOVERS, default=default.crossover)
        for name in _RATES:
            inferior = (
                ', or "inferior": only for channels whose filter is inferior' if name == "norm_shift_rate" else ""
            )
            group.add_argument(
                f"--{name.replace('_', '-')}",
                type=_shift_rate if inferior else fraction,
                metavar="R",
                help=f"base rate ({getattr(default, name)}; {_IMAGENET_RATE} for imagenet){inferior}",
            )
        group.add_argument("--linear-rate", type=fraction, default=default.linear_rate, metavar="R", help="0: off")
        group.add_argument("--local-ratio", type=fraction, default=default.local_ratio, metavar="R", help=_DEFAULT)
        group.add_argument(
            "--starvation-divisor", type=positive_float, default=default.starvation_divisor, metavar="D", help=_DEFAULT
        )
        group.add_argument(
            "--schedule",
            choices=("cifar", "imagenet", "constant"),
            default="cifar",
            help="published stages, scaled to --epochs (default cifar), or the base rates throughout",
        )
        group.add_argument("--milestones", type=positive_int, nargs="*", metavar="E", help="own stages: first epochs")
        group.add_argument("--divisors", type=positive_float, nargs="+", metavar="D", help="own stages: rate divisors")
        group.add_argument("--tau", type=positive_float, metavar="T", help="own stages: epochs per unit of the sigmoid")
        group.add_argument(
            "--evolve-every",
            type=positive_int,
            default=default.every,
            metavar="N",
            help="N epochs (default %(default)s)",
        )
        group.add_argument(
            "--optimizer-state",
            choices=("keep", "fill", "reset"),
            default=default.optimizer_state,
            help="momentum of replaced elements (default keep, as published)",
        )

    @classmethod
    def options(cls, arguments: argparse.Namespace) -> dict[str, Any]:
        rates = {name: getattr(arguments, name) for name in _RATES}
        for name in [name for name, rate in rates.items() if rate is None]:
            rates[name] = _IMAGENET_RATE if arguments.schedule == "imagenet" else getattr(Options, name)
        schedule = _schedule_options(arguments)
        return asdict(options_of(Options, arguments, **rates, schedule=schedule, every=arguments.evolve_every))

    def after_epoch(self, epoch: int) -> dict[str, float]:
        if (epoch + 1) % self._every:
            return {}
        device = next(self.model.parameters()).device
        report, seconds = timed(device, lambda: self.evolution.step(epoch=epoch))
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
    def describe(cls, row: Mapping[str, float]) -> list[str]:
        return [f"evolved {row['evolution_replaced_conv']}"] if "evolution_replaced_conv" in row else []

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
    try:
        own = asdict(Options(**options))
        del own["every"]  # the trainer's
        own["schedule"] = make_schedule(own["schedule"])
        if optimizer is None:
            own["optimizer_state"] = "keep"
        used = None if own["optimizer_state"] == "keep" else optimizer
        return WeightEvolution(model, optimizer=used, measure_after=False, **own)
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from None


def make_schedule(options: Mapping[str, Any] | None) -> Schedule:
    """A `StagedSigmoid` of these milestones, divisors and tau; None: the base rates throughout."""
    if options is None:
        return _constant
    return StagedSigmoid(tuple(options["milestones"]), tuple(options["divisors"]), options["tau"])


def scaled_schedule(name: str, epochs: int) -> dict[str, Any]:
    """The published stages for "cifar" (200 epochs) or "imagenet" (90), stretched to ``epochs``."""
    published, of = _SCHEDULES[name]
    milestones: list[int] = []
    for milestone in published.milestones:
        previous = milestones[-1] if milestones else 0
        milestones.append(max(previous + 1, round(milestone * epochs / of)))
    return {"milestones": milestones, "divisors": list(published.divisors), "tau": published.tau * epochs / of}


def _schedule_options(arguments: argparse.Namespace) -> dict[str, Any] | None:
    own = {"milestones": arguments.milestones, "divisors": arguments.divisors, "tau": arguments.tau}
    if any(value is not None for value in own.values()):
        if missing := [f"--{name}" for name, value in own.items() if value is None]:
            raise UserError(f"own stages need --milestones, --divisors and --tau; missing {' and '.join(missing)}")
        return own
    return None if arguments.schedule == "constant" else scaled_schedule(arguments.schedule, arguments.epochs)


def _shift_rate(text: str) -> float | str:
    return text if text == "inferior" else fraction(text)


def _constant(base_rate: float, epoch: int) -> float:
    return base_rate
