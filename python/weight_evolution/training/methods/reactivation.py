"""Unit reactivation as a method of the trainer."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from weight_evolution import ReactivationReport, UnitReactivation
from weight_evolution.reactivation.options import IMPORTANCES, OUTGOING, SCALES, UTILITIES, ReactivationOptions

from ..arguments import fraction, non_negative_float, non_negative_int, positive_int
from ..errors import UserError
from .base import Method, timed

_DEFAULTS = ReactivationOptions()
_DEFAULT = "default %(default)s"


@dataclass(frozen=True)
class Options:
    """The options of the method, as a checkpoint holds them."""

    threshold: float = _DEFAULTS.threshold
    every: int = _DEFAULTS.every
    batches: int = _DEFAULTS.batches
    scale: str = _DEFAULTS.scale
    outgoing: str = _DEFAULTS.outgoing
    optimizer_state: str = "fill"
    importance: str = _DEFAULTS.importance
    replacement_rate: float | None = _DEFAULTS.replacement_rate
    maturity: int = _DEFAULTS.maturity
    decay: float = _DEFAULTS.decay
    utility: str = _DEFAULTS.utility


class ReactivationMethod(Method):
    """`UnitReactivation` after each step of the trainer's optimizer; fresh weights follow from the run's seed.

    Only training batches are measured, never the test images.
    """

    name = "reactivation"

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, options: Mapping[str, Any], input_size: Sequence[int]
    ) -> None:
        super().__init__(model, optimizer, options, input_size)
        self._options, self._input_size = dict(options), list(input_size)
        self._reports: list[ReactivationReport] = []
        self._seconds = 0.0
        self.reactivation = self._attach(0)

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group(
            "unit reactivation (--method reactivation)",
            "units that no longer fire start anew; the log gets how many did, and how many were dead",
        )
        default = Options()
        group.add_argument(
            "--reactivation-threshold",
            type=non_negative_float,
            default=default.threshold,
            metavar="T",
            help="share of the layer's mean activation up to which a unit is dormant (default %(default)s; 0: dead)",
        )
        group.add_argument(
            "--reactivation-every",
            type=positive_int,
            default=default.every,
            metavar="N",
            help="N iterations (default %(default)s)",
        )
        group.add_argument(
            "--reactivation-batches",
            type=positive_int,
            default=default.batches,
            metavar="N",
            help="measure in the last N iterations before (default %(default)s)",
        )
        group.add_argument(
            "--reactivation-scale",
            choices=SCALES,
            default=default.scale,
            help="L1 norm of new weights: of the layer, of a donor, or as drawn (ReDo) (default %(default)s)",
        )
        group.add_argument(
            "--reactivation-outgoing", choices=OUTGOING, default=default.outgoing, help="weights out of new units"
        )
        group.add_argument(
            "--reactivation-optimizer-state",
            choices=("fill", "reset", "keep"),
            default=default.optimizer_state,
            help=f"momentum of written elements ({_DEFAULT})",
        )
        group.add_argument(
            "--reactivation-importance",
            choices=IMPORTANCES,
            default=default.importance,
            help=f"score by activation, or by L1 norm of the weights ({_DEFAULT})",
        )
        group.add_argument(
            "--reactivation-rate",
            type=fraction,
            metavar="R",
            help="instead of dormant units: this share of the mature ones, the least useful, at each acting step",
        )
        group.add_argument(
            "--reactivation-maturity",
            type=non_negative_int,
            default=default.maturity,
            metavar="N",
            help="acting steps until a unit is mature, for --reactivation-rate (default %(default)s)",
        )
        group.add_argument(
            "--reactivation-decay",
            type=fraction,
            default=default.decay,
            metavar="D",
            help=f"of the average utility ({_DEFAULT})",
        )
        group.add_argument(
            "--reactivation-utility", choices=UTILITIES, default=default.utility, help=f"of a unit ({_DEFAULT})"
        )

    @classmethod
    def options(cls, arguments: argparse.Namespace) -> dict[str, Any]:
        return asdict(
            Options(
                threshold=arguments.reactivation_threshold,
                every=arguments.reactivation_every,
                batches=arguments.reactivation_batches,
                scale=arguments.reactivation_scale,
                outgoing=arguments.reactivation_outgoing,
                optimizer_state=arguments.reactivation_optimizer_state,
                importance=arguments.reactivation_importance,
                replacement_rate=arguments.reactivation_rate,
                maturity=arguments.reactivation_maturity,
                decay=arguments.reactivation_decay,
                utility=arguments.reactivation_utility,
            )
        )

    @classmethod
    def describe(cls, row: Mapping[str, float]) -> list[str]:
        return [f"revived {row['reactivation_revived']}"] if "reactivation_revived" in row else []

    @classmethod
    def summarize(cls, history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        if not any("reactivation_revived" in row for row in history):
            return {}
        return {
            "reactivation_revived": sum(row.get("reactivation_revived", 0) for row in history),
            "reactivation_seconds": sum(row.get("reactivation_seconds", 0.0) for row in history),
        }

    def seed_with(self, seed: int) -> None:
        self.reactivation.detach()
        self.reactivation = self._attach(seed)

    def after_iteration(self) -> None:
        if (self.reactivation.iterations + 1) % self.reactivation.every:
            self.reactivation.step()
            return
        report, seconds = timed(next(self.model.parameters()).device, self.reactivation.step)
        assert report is not None
        self._reports.append(report)
        self._seconds += seconds

    def after_epoch(self, epoch: int) -> dict[str, float]:
        reports, self._reports = self._reports, []
        columns: dict[str, float] = {
            "reactivation_seconds": self._seconds,
            "reactivation_revived": sum(report.total for report in reports),
            "reactivation_units": sum(layer.units for layer in self.reactivation.graph.layers.values()),
        }
        self._seconds = 0.0
        if reports and self._options["importance"] == "activity":
            columns["reactivation_dead"] = sum(reports[-1].dead.values())
        return columns

    def state_dict(self) -> dict[str, Any]:
        return self.reactivation.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.reactivation.load_state_dict(state)

    def _attach(self, seed: int) -> UnitReactivation:
        parameter = next(self.model.parameters())
        example = torch.zeros(1, *self._input_size, device=parameter.device, dtype=parameter.dtype)
        try:
            return UnitReactivation(
                self.model, self.optimizer, seed=seed, example_inputs=example, all_ranks=False, **self._options
            )
        except (TypeError, ValueError) as error:
            raise UserError(f"--method reactivation: {error}") from None
