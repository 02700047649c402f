"""Low-rank projection as a method of the trainer."""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from weight_evolution import LowRankProjection, NonFiniteWeightError, ProjectionReport
from weight_evolution.low_rank import PUBLISHED_PRUNE_RATIO

from ..arguments import fraction, options_of, positive_int
from ..errors import UserError
from .base import Method, timed


@dataclass(frozen=True)
class Options:
    """The options of the method, as a checkpoint holds them."""

    prune_ratio: float | list[float] | None = PUBLISHED_PRUNE_RATIO
    mac_budget: float | None = None
    linear: bool = False
    rectify: bool = True
    energy_transfer: bool = True
    every_iterations: int | None = None
    optimizer_state: str = "keep"


class LowRankMethod(Method):
    """`LowRankProjection` at the end of each epoch and, if asked for, every n iterations within it.

    A checkpoint so always holds projected weights. The ranks of a budget are chosen at the first projection, since the
    spectra of fresh random weights are nearly flat.
    """

    name = "low-rank"

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, options: Mapping[str, Any], input_size: Sequence[int]
    ) -> None:
        super().__init__(model, optimizer, options, input_size)
        self._options = dict(options)
        self._input_size = list(input_size)
        self._every: int | None = options["every_iterations"]
        self._iterations = 0
        self._projections = 0
        self._seconds = 0.0
        self.projection = make_projection(model, optimizer, options, input_size)

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group(
            "low-rank projection (--method low-rank)", "the accuracy reported is the compact network's"
        )
        group.add_argument(
            "--prune-ratio",
            type=fraction,
            nargs="+",
            metavar="R",
            help=f"share of the ranks that goes, one for all layers or one for each (default {PUBLISHED_PRUNE_RATIO})",
        )
        group.add_argument(
            "--mac-budget", type=fraction, metavar="B", help="instead: the share of the MACs that may remain"
        )
        group.add_argument(
            "--linear", action="store_true", help="project Linear layers too, in the order of the modules"
        )
        group.add_argument("--no-rectify", action="store_true", help="project without the BatchNorm that follows")
        group.add_argument("--no-energy-transfer", action="store_true", help="plain truncation at each projection")
        group.add_argument(
            "--project-every-iterations",
            type=positive_int,
            metavar="N",
            help="N iterations: project within epochs too (default: at the end of each)",
        )

    @classmethod
    def options(cls, arguments: argparse.Namespace) -> dict[str, Any]:
        ratios, budget = arguments.prune_ratio, arguments.mac_budget
        if ratios is not None and budget is not None:
            raise UserError("--prune-ratio and --mac-budget both choose the ranks; pass one of them")
        if ratios is None and budget is None:
            ratios = [Options.prune_ratio]
        return asdict(
            options_of(
                Options,
                arguments,
                prune_ratio=ratios[0] if ratios is not None and len(ratios) == 1 else ratios,
                rectify=not arguments.no_rectify,
                energy_transfer=not arguments.no_energy_transfer,
                every_iterations=arguments.project_every_iterations,
            )
        )

    @classmethod
    def describe(cls, row: Mapping[str, float]) -> list[str]:
        return [f"compact {row['compact_test_accuracy']:.2f}%"] if "compact_test_accuracy" in row else []

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
        if self._every is not None and self._iterations % self._every == 0:
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
            "input_size": self._input_size,
            "projection": self.projection.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.projection.load_state_dict(state["projection"])
        self._iterations, self._projections = state["iterations"], state["projections"]

    def _project(self) -> ProjectionReport:
        report, seconds = timed(next(self.model.parameters()).device, self._step)
        self._seconds += seconds
        return report

    def _step(self) -> ProjectionReport:
        if self._projections == 0 and self._options["mac_budget"] is not None:
            self.projection = make_projection(self.model, self.optimizer, self._options, self._input_size)
        report = self.projection.step()
        self._projections += 1
        return report


def make_projection(
    model: nn.Module, optimizer: Optimizer | None, options: Mapping[str, Any], input_size: Sequence[int]
) -> LowRankProjection:
    """The `LowRankProjection` of these options.

    Raises:
        UserError: the options or the model do not fit.
    """
    parameter = next(model.parameters())
    state = "keep" if optimizer is None else options["optimizer_state"]
    try:
        return LowRankProjection(
            model,
            prune_ratio=options["prune_ratio"],
            budget=options["mac_budget"],
            linear=options["linear"],
            rectify_batch_norm=options["rectify"],
            energy_transfer=options["energy_transfer"],
            example_inputs=torch.zeros(1, *input_size, device=parameter.device, dtype=parameter.dtype),
            optimizer=optimizer if state != "keep" else None,
            optimizer_state=state,
        )
    except NonFiniteWeightError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"--method low-rank: {error}") from None
