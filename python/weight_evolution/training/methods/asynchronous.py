"""Weight asynchronous update as a method of the trainer."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from weight_evolution import AsynchronousUpdate, measure_overlap
from weight_evolution.asynchronous import PUBLISHED_RATE

from ..arguments import fraction, options_of
from ..errors import UserError
from ..overlap_plot import LAYER_OVERLAP, OVERLAP_MAXIMUM, OVERLAP_MEAN, plot_overlap
from .base import Method, timed


@dataclass(frozen=True)
class Options:
    """The options of the method, as a checkpoint holds them."""

    rate: float = PUBLISHED_RATE
    select: str = "filters"
    replacement: bool = False
    rescale: bool = False


class AsynchronousMethod(Method):
    """`AsynchronousUpdate` in each step of the trainer's optimizer; the overlap of the filters after each epoch.

    The subsets follow from the run's seed. At rate 1 it is the plain optimizer, bit for bit, with overlap in the log.
    """

    name = "asynchronous"

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, options: Mapping[str, Any], input_size: Sequence[int]
    ) -> None:
        super().__init__(model, optimizer, options, input_size)
        self._options = dict(options)
        self.update = self._attach(0)

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group(
            "weight asynchronous update (--method asynchronous)",
            "in each iteration a random subset of each convolution's filters moves; the log gets their overlap",
        )
        group.add_argument(
            "--rate",
            type=fraction,
            default=Options.rate,
            metavar="R",
            help="share of the filters that moves (default %(default)s)",
        )
        group.add_argument(
            "--select",
            choices=("filters", "input-channels"),
            default="filters",
            help="filters (default), or input-channels, as released together with --replacement",
        )
        group.add_argument("--replacement", action="store_true", help="draw with replacement: fewer distinct ones move")
        group.add_argument("--rescale", action="store_true", help="divide what moved by the expected share")

    @classmethod
    def options(cls, arguments: argparse.Namespace) -> dict[str, Any]:
        return asdict(options_of(Options, arguments, select=arguments.select.replace("-", "_")))

    @classmethod
    def describe(cls, row: Mapping[str, float]) -> list[str]:
        return [f"overlap {row[OVERLAP_MEAN]:.4f}"] if OVERLAP_MEAN in row else []

    @classmethod
    def draw(cls, history: Sequence[Mapping[str, float]], folder: Path) -> None:
        if any(OVERLAP_MEAN in row for row in history):
            plot_overlap({"mean of the layers": history}, folder / "overlap.png")

    def seed_with(self, seed: int) -> None:
        self.update.detach()
        self.update = self._attach(seed)

    def after_epoch(self, epoch: int) -> dict[str, float]:
        device = next(self.model.parameters()).device
        overlap, seconds = timed(device, lambda: measure_overlap(self.model))
        columns = {
            "overlap_seconds": seconds,
            OVERLAP_MEAN: overlap.model_mean,
            OVERLAP_MAXIMUM: overlap.model_maximum,
        }
        layers = {name: mean for name, mean in overlap.mean.items() if len(overlap.maximum[name]) > 1}
        return columns | {LAYER_OVERLAP + name.removesuffix(".weight"): mean for name, mean in layers.items()}

    def state_dict(self) -> dict[str, Any]:
        return self.update.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.update.load_state_dict(state)

    def _attach(self, seed: int) -> AsynchronousUpdate:
        try:
            return AsynchronousUpdate(self.optimizer, self.model, seed=seed, **self._options)
        except (TypeError, ValueError) as error:
            raise UserError(f"--method asynchronous: {error}") from None
