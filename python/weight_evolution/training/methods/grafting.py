"""The options of filter grafting; `networks.Networks` does it, since it concerns several networks."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from weight_evolution import FilterGrafting
from weight_evolution.grafting import CRITERIA, LEVELS

from ..arguments import fraction, non_negative_float, positive_float, positive_int
from ..errors import UserError
from ..launch import started_processes
from .base import Method


class GraftingMethod(Method):
    """What a single trainer knows of grafting: nothing but that others must belong to it."""

    name = "grafting"
    grafting: FilterGrafting | None = None
    """Set by the `Networks` that the trainer is one of."""

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group(
            "filter grafting (--method grafting)",
            "trains several networks, in this process or, under torchrun, one on each rank; the accuracy reported is "
            "the first network's, and beside it the best one's",
        )
        group.add_argument("--networks", type=positive_int, metavar="K", help="default 2; under torchrun all ranks")
        group.add_argument(
            "--graft-learning-rates", type=positive_float, nargs="+", metavar="LR", help="one each (default: all --lr)"
        )
        group.add_argument("--graft-level", choices=LEVELS, default="layer", help="default layer")
        group.add_argument("--graft-criterion", choices=CRITERIA, default="entropy", help="default entropy")
        group.add_argument("--graft-strength", type=fraction, default=0.4, metavar="A", help="default 0.4")
        group.add_argument("--graft-sharpness", type=non_negative_float, default=500.0, metavar="C", help="default 500")
        group.add_argument("--graft-bins", type=positive_int, default=10, metavar="B", help="default 10")
        group.add_argument("--graft-every", type=positive_int, default=1, metavar="N", help="N epochs (default 1)")
        group.add_argument(
            "--graft-time-out", type=positive_float, default=1800.0, metavar="S", help="under torchrun (default 1800 s)"
        )

    @classmethod
    def options(cls, arguments: argparse.Namespace) -> dict[str, Any]:
        rates, networks = arguments.graft_learning_rates, arguments.networks or started_processes() or 2
        if networks < 2:
            raise UserError(f"--networks must be at least 2, got {networks}")
        if rates is not None and len(rates) != networks:
            raise UserError(f"--graft-learning-rates must be one per network ({networks}), got {len(rates)}")
        return {
            "networks": networks,
            "learning_rates": rates,
            "level": arguments.graft_level,
            "criterion": arguments.graft_criterion,
            "strength": arguments.graft_strength,
            "sharpness": arguments.graft_sharpness,
            "bins": arguments.graft_bins,
            "every": arguments.graft_every,
        }

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
