"""Weight evolution as a method of the trainer."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from weight_evolution import StagedSigmoid, WeightEvolution
from weight_evolution.evolution import Schedule

from ..arguments import fraction, positive_float, positive_int
from ..errors import UserError
from .base import Method, wait_for

_PUBLISHED = {"cifar": (StagedSigmoid.cifar(), 200), "imagenet": (StagedSigmoid.imagenet(), 90)}
_PUBLISHED_RATES = {"cifar": (0.2, 0.05, 0.05), "imagenet": (0.02, 0.02, 0.02)}


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
        group.add_argument("--crossover", choices=("paper", "released"), default="paper")
        group.add_argument("--conv-rate", type=fraction, metavar="R", help="base rate (0.2; 0.02 for imagenet)")
        group.add_argument("--norm-scale-rate", type=fraction, metavar="R", help="base rate (0.05; 0.02)")
        group.add_argument(
            "--norm-shift-rate",
            type=_shift_rate,
            metavar="R",
            help='base rate (0.05; 0.02), or "inferior": 0.05 for channels whose filter is inferior, 0 for others',
        )
        group.add_argument("--linear-rate", type=fraction, default=0.0, metavar="R", help="default 0: off")
        group.add_argument("--local-ratio", type=fraction, default=0.1, metavar="R", help="default 0.1")
        group.add_argument("--starvation-divisor", type=positive_float, default=2.0, metavar="D", help="default 2")
        group.add_argument(
            "--schedule",
            choices=("cifar", "imagenet", "constant"),
            default="cifar",
            help="published stages, scaled to --epochs (default cifar), or the base rates throughout",
        )
        group.add_argument("--milestones", type=positive_int, nargs="*", metavar="E", help="own stages: first epochs")
        group.add_argument("--divisors", type=positive_float, nargs="+", metavar="D", help="own stages: rate divisors")
        group.add_argument("--tau", type=positive_float, metavar="T", help="own stages: epochs per unit of the sigmoid")
        group.add_argument("--evolve-every", type=positive_int, default=1, metavar="N", help="N epochs (default 1)")
        group.add_argument(
            "--optimizer-state",
            choices=("keep", "fill", "reset"),
            default="keep",
            help="momentum of replaced elements (default keep, as published)",
        )

    @classmethod
    def options(cls, arguments: argparse.Namespace) -> dict[str, Any]:
        rates = _PUBLISHED_RATES.get(arguments.schedule, _PUBLISHED_RATES["cifar"])
        given = (arguments.conv_rate, arguments.norm_scale_rate, arguments.norm_shift_rate)
        conv, scale, shift = (own if own is not None else rate for own, rate in zip(given, rates, strict=True))
        return {
            "crossover": arguments.crossover,
            "conv_rate": conv,
            "norm_scale_rate": scale,
            "norm_shift_rate": shift,
            "linear_rate": arguments.linear_rate,
            "local_ratio": arguments.local_ratio,
            "starvation_divisor": arguments.starvation_divisor,
            "schedule": _schedule_options(arguments),
            "every": arguments.evolve_every,
            "optimizer_state": arguments.optimizer_state,
            "epochs": arguments.epochs,
        }

    def after_epoch(self, epoch: int) -> dict[str, float]:
        if (epoch + 1) % self._every:
            return {}
        device = next(self.model.parameters()).device
        wait_for(device)
        start = time.perf_counter()
        report = self.evolution.step(epoch=epoch)
        if report is None:
            return {}
        wait_for(device)
        columns: dict[str, float] = {"evolution_seconds": time.perf_counter() - start}
        for kind, rate in report.rates.items():
            names = [name for name, of in report.kinds.items() if of == kind]
            columns[f"evolution_rate_{kind}"] = rate
            columns[f"evolution_threshold_{kind}"] = report.thresholds[kind]
            columns[f"evolution_replaced_{kind}"] = sum(report.inferior[name] for name in names)
        return columns

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
    try:
        state = "keep" if optimizer is None else options["optimizer_state"]
        return WeightEvolution(
            model,
            conv_rate=options["conv_rate"],
            norm_scale_rate=options["norm_scale_rate"],
            norm_shift_rate=options["norm_shift_rate"],
            linear_rate=options["linear_rate"],
            local_ratio=options["local_ratio"],
            starvation_divisor=options["starvation_divisor"],
            schedule=make_schedule(options["schedule"]),
            crossover=options["crossover"],
            optimizer=optimizer if state != "keep" else None,
            optimizer_state=state,
            measure_after=False,
            epochs=options.get("epochs"),
        )
    except KeyError as error:
        raise UserError(f"the options of --method evolution have no {error}") from None
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from None


def make_schedule(options: Mapping[str, Any] | None) -> Schedule:
    """A `StagedSigmoid` of these milestones, divisors and tau; None: the base rates throughout."""
    if options is None:
        return _constant
    return StagedSigmoid(tuple(options["milestones"]), tuple(options["divisors"]), options["tau"])


def scaled_schedule(name: str, epochs: int) -> dict[str, Any]:
    """The published stages for "cifar" (200 epochs) or "imagenet" (90), stretched to ``epochs``."""
    published, of = _PUBLISHED[name]
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
