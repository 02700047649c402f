"""Unit reactivation as a method of the trainer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weight_evolution import ReactivationReport, UnitReactivation
from weight_evolution.reactivation.options import IMPORTANCES, OUTGOING, SCALES, UTILITIES, ReactivationOptions

from ..arguments import fraction, non_negative_float, non_negative_int, option, positive_int
from ..errors import user_errors
from .base import Method, Training, timed

_DEFAULTS = ReactivationOptions()


@dataclass(frozen=True)
class Options:
    """The options of the method, as a checkpoint holds them."""

    threshold: float = option(
        _DEFAULTS.threshold,
        "share of the layer's mean activation up to which a unit is dormant; 0: dead ones",
        type=non_negative_float,
        metavar="T",
    )
    every: int = option(_DEFAULTS.every, "N iterations", type=positive_int, metavar="N")
    batches: int = option(_DEFAULTS.batches, "measure in the last N iterations before", type=positive_int, metavar="N")
    scale: str = option(
        _DEFAULTS.scale, "L1 norm of new weights: of the layer, of a donor, or as drawn (ReDo)", choices=SCALES
    )
    outgoing: str = option(_DEFAULTS.outgoing, "weights out of new units", choices=OUTGOING)
    optimizer_state: str = option("fill", "momentum of written elements", choices=("fill", "reset", "keep"))
    importance: str = option(
        _DEFAULTS.importance, "score by activation, or by L1 norm of the weights", choices=IMPORTANCES
    )
    replacement_rate: float | None = option(
        _DEFAULTS.replacement_rate,
        "instead of dormant units: this share of the mature ones, the least useful, at each acting step",
        flag="reactivation_rate",
        type=fraction,
        metavar="R",
    )
    maturity: int = option(
        _DEFAULTS.maturity,
        "acting steps until a unit is mature, for --reactivation-rate",
        type=non_negative_int,
        metavar="N",
    )
    decay: float = option(_DEFAULTS.decay, "of the average utility", type=fraction, metavar="D")
    utility: str = option(_DEFAULTS.utility, "of a unit", choices=UTILITIES)


class ReactivationMethod(Method):
    """`UnitReactivation` after each step of the trainer's optimizer; fresh weights follow from the run's seed.

    Only training batches are measured, never the test images.
    """

    name = "reactivation"
    kind = Options
    said = ("reactivation_revived", "revived {}")
    title = "unit reactivation (--method reactivation)"
    description = "units that no longer fire start anew; the log gets how many did, and how many were dead"
    prefix = "reactivation_"

    def __init__(self, training: Training, options: Mapping[str, Any]) -> None:
        super().__init__(training, options)
        self._reports: list[ReactivationReport] = []
        self._seconds = 0.0
        with user_errors("--method reactivation: "):
            self.reactivation = UnitReactivation(
                training.model,
                training.optimizer,
                seed=training.seed,
                example_inputs=training.example,
                all_ranks=training.ranks.count > 1,
                **options,
            )

    @classmethod
    def summarize(cls, history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        if not any("reactivation_revived" in row for row in history):
            return {}
        return {
            "reactivation_revived": sum(row.get("reactivation_revived", 0) for row in history),
            "reactivation_seconds": sum(row.get("reactivation_seconds", 0.0) for row in history),
        }

    def after_iteration(self) -> None:
        if (self.reactivation.iterations + 1) % self.reactivation.every:
            self.reactivation.step()
            return
        report, seconds = timed(self.device, self.reactivation.step)
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
        if reports and self.reactivation.importance == "activity":
            columns["reactivation_dead"] = sum(reports[-1].dead.values())
        return columns

    def state_dict(self) -> dict[str, Any]:
        return self.reactivation.state_dict(all_ranks=True)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.reactivation.load_state_dict(state)
