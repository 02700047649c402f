"""The options of filter grafting; `networks.Networks` does it, since it concerns several networks."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from weight_evolution import FilterGrafting, GraftingReport
from weight_evolution.grafting import CRITERIA, LEVELS, Rule

from ..arguments import fraction, non_negative_float, option, positive_float, positive_int
from ..errors import UserError
from ..launch import started_processes
from .base import Method

_PUBLISHED = Rule()


@dataclass(frozen=True)
class Options:
    """The options of the method, as a checkpoint holds them."""

    networks: int = option(
        2,
        "default 2; under torchrun without --parallel all ranks",
        flag="networks",
        default=None,
        type=positive_int,
        metavar="K",
    )
    learning_rates: list[float] | None = option(
        None, "one each (default: all --lr)", type=positive_float, nargs="+", metavar="LR"
    )
    """One for each network; None: that of the run."""
    level: str = option(_PUBLISHED.level, choices=LEVELS)
    criterion: str = option(_PUBLISHED.criterion, choices=CRITERIA)
    strength: float = option(_PUBLISHED.strength, type=fraction, metavar="A")
    sharpness: float = option(_PUBLISHED.sharpness, type=non_negative_float, metavar="C")
    bins: int = option(_PUBLISHED.bins, type=positive_int, metavar="B")
    every: int = option(1, "N epochs", type=positive_int, metavar="N")


class GraftingMethod(Method):
    """What a single trainer knows of grafting: nothing but that others must belong to it."""

    name = "grafting"
    kind = Options
    title = "filter grafting (--method grafting)"
    description = (
        "trains several networks, in this process or, under torchrun without --parallel, one on each rank; the "
        "accuracy reported is the first network's, and beside it the best one's"
    )
    prefix = "graft_"
    grafting: FilterGrafting | None = None
    """Set by the `Networks` that the trainer is one of."""

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
        group = super().add_arguments(parser)
        group.add_argument(
            "--graft-time-out", type=positive_float, default=1800.0, metavar="S", help="under torchrun (default 1800 s)"
        )
        return group

    @classmethod
    def options(cls, arguments: argparse.Namespace) -> dict[str, Any]:
        ring = started_processes() if arguments.parallel is None else None
        rates, networks = arguments.graft_learning_rates, arguments.networks or ring or Options.networks
        if networks < 2:
            raise UserError(f"--networks must be at least 2, got {networks}")
        if rates is not None and len(rates) != networks:
            raise UserError(f"--graft-learning-rates must be one per network ({networks}), got {len(rates)}")
        return super().options(arguments) | {"networks": networks}

    @staticmethod
    def columns(report: GraftingReport, network: int) -> dict[str, float]:
        """What the log says of one network after a grafting."""
        shares = report.coefficients[network]
        kept = [float(torch.as_tensor(shares.get(name, 1.0)).mean()) for name in report.entropies[0]]
        columns = {
            "grafting_information_mean": statistics.fmean(report.entropies[network].values()),
            "grafting_kept_mean": statistics.fmean(kept),
            "grafting_kept_min": min(kept),
            "grafting_kept_max": max(kept),
        }
        return columns | {f"grafting_invalid_filters_{t:g}": n for t, n in report.invalid_after[network].items()}

    def after_epoch(self, epoch: int) -> dict[str, float]:
        if self.grafting is None:
            raise UserError("the method grafting trains several networks at once; use networks.Networks, not a Trainer")
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {} if self.grafting is None else self.grafting.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        # The trainer has compared all options. Checkpoints of earlier versions hold nothing.
        if state and self.grafting is not None:
            self.grafting.load_state_dict(state, strict=False)
