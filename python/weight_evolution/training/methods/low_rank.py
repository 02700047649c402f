"""Low-rank projection as a method of the trainer."""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from weight_evolution import LowRankProjection, ProjectionReport
from weight_evolution.low_rank import PUBLISHED_PRUNE_RATIO

from ..arguments import fraction, option, positive_int
from ..errors import UserError, user_errors
from .base import Method, Training, timed


@dataclass(frozen=True)
class Options:
    """The options of the method, as a checkpoint holds them."""

    prune_ratio: float | list[float] | None = option(
        PUBLISHED_PRUNE_RATIO,
        f"share of the ranks that goes, one for all layers or one for each (default {PUBLISHED_PRUNE_RATIO})",
        default=None,
        type=fraction,
        nargs="+",
        metavar="R",
    )
    mac_budget: float | None = option(
        None, "instead: the share of the MACs that may remain", type=fraction, metavar="B"
    )
    linear: bool = option(False, "project Linear layers too, in the order of the modules")
    rectify: bool = option(True, "project without the BatchNorm that follows")
    energy_transfer: bool = option(True, "plain truncation at each projection")
    every_iterations: int | None = option(
        None,
        "N iterations: project within epochs too (default: at the end of each)",
        flag="project_every_iterations",
        type=positive_int,
        metavar="N",
    )
    optimizer_state: str = "keep"


class LowRankMethod(Method):
    """`LowRankProjection` at the end of each epoch and, if asked for, every n iterations within it.

    A checkpoint so always holds projected weights. The ranks of a budget are chosen at the first projection, since the
    spectra of fresh random weights are nearly flat.
    """

    name = "low-rank"
    kind = Options
    said = ("compact_test_accuracy", "compact {:.2f}%")
    title = "low-rank projection (--method low-rank)"
    description = "the accuracy reported is the compact network's"

    def __init__(self, training: Training, options: Mapping[str, Any]) -> None:
        super().__init__(training, options)
        self._options = dict(options)
        self._iterations = 0
        self._projections = 0
        self._seconds = 0.0
        self.projection = self._make()

    @classmethod
    def options(cls, arguments: argparse.Namespace) -> dict[str, Any]:
        ratios, budget = arguments.prune_ratio, arguments.mac_budget
        if ratios is not None and budget is not None:
            raise UserError("--prune-ratio and --mac-budget both choose the ranks; pass one of them")
        if ratios is None and budget is None:
            ratios = [Options.prune_ratio]
        ratio = ratios[0] if ratios is not None and len(ratios) == 1 else ratios
        return super().options(arguments) | {"prune_ratio": ratio}

    @classmethod
    def summarize(cls, history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        last = history[-1]
        if "compact_test_accuracy" not in last:
            return {}
        costs = ("parameters", "compact_parameters", "macs", "compact_macs")
        return {
            "accuracy_of": "compact network",
            "uncompressed_test_accuracy": last["test_accuracy"],
            **{key: last[key] for key in costs},
        }

    def after_iteration(self) -> None:
        self._iterations += 1
        every = self._options["every_iterations"]
        if every is not None and self._iterations % every == 0:
            self._project()

    def after_epoch(self, epoch: int) -> dict[str, float]:
        report = self._project()
        columns = {"low_rank_seconds": self._seconds}
        self._seconds = 0.0
        if kept := [share for share in report.energy_kept.values() if not math.isnan(share)]:
            columns["low_rank_energy_kept_mean"] = statistics.fmean(kept)
            columns["low_rank_energy_kept_min"] = min(kept)
        return columns

    def compact(self) -> nn.Module:
        return self.projection.compact()

    def state_dict(self) -> dict[str, Any]:
        return {
            "iterations": self._iterations,
            "projections": self._projections,
            "input_size": list(self.training.input_size),
            "projection": self.projection.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.projection.load_state_dict(state["projection"])
        self._iterations, self._projections = state["iterations"], state["projections"]

    def _project(self) -> ProjectionReport:
        report, seconds = timed(self.device, self._step)
        self._seconds += seconds
        return report

    def _step(self) -> ProjectionReport:
        if self._projections == 0 and self._options["mac_budget"] is not None:
            self.projection = self._make()
        report = self.projection.step()
        self._projections += 1
        return report

    def _make(self) -> LowRankProjection:
        return make_projection(self.training.model, self.training.optimizer, self._options, self.training.example)


def make_projection(
    model: nn.Module, optimizer: Optimizer | None, options: Mapping[str, Any], example: Tensor
) -> LowRankProjection:
    """The `LowRankProjection` of these options.

    Raises:
        UserError: the options or the model do not fit.
    """
    state = "keep" if optimizer is None else options["optimizer_state"]
    with user_errors("--method low-rank: "):
        return LowRankProjection(
            model,
            prune_ratio=options["prune_ratio"],
            budget=options["mac_budget"],
            linear=options["linear"],
            rectify_batch_norm=options["rectify"],
            energy_transfer=options["energy_transfer"],
            example_inputs=example,
            optimizer=optimizer if state != "keep" else None,
            optimizer_state=state,
        )
