"""Weight asynchronous update as a method of the trainer."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weight_evolution import AsynchronousUpdate, measure_overlap
from weight_evolution.asynchronous import PUBLISHED_RATE

from ..arguments import fraction, option
from ..errors import user_errors
from ..overlap_plot import LAYER_OVERLAP, OVERLAP_MAXIMUM, OVERLAP_MEAN, plot_overlap
from .base import Method, Training, timed


@dataclass(frozen=True)
class Options:
    """The options of the method, as a checkpoint holds them."""

    rate: float = option(PUBLISHED_RATE, "share of the filters that moves", type=fraction, metavar="R")
    select: str = option(
        "filters",
        "filters (default), or input-channels, as released together with --replacement",
        choices=("filters", "input-channels"),
    )
    replacement: bool = option(False, "draw with replacement: fewer distinct ones move")
    rescale: bool = option(False, "divide what moved by the expected share")


class AsynchronousMethod(Method):
    """`AsynchronousUpdate` in each step of the trainer's optimizer; the overlap of the filters after each epoch.

    The subsets follow from the run's seed. At rate 1 it is the plain optimizer, bit for bit, with overlap in the log.
    """

    name = "asynchronous"
    kind = Options
    said = (OVERLAP_MEAN, "overlap {:.4f}")
    title = "weight asynchronous update (--method asynchronous)"
    description = "in each iteration a random subset of each convolution's filters moves; the log gets their overlap"

    def __init__(self, training: Training, options: Mapping[str, Any]) -> None:
        super().__init__(training, options)
        with user_errors("--method asynchronous: "):
            self.update = AsynchronousUpdate(training.optimizer, training.model, seed=training.seed, **options)

    @classmethod
    def options(cls, arguments: argparse.Namespace) -> dict[str, Any]:
        return super().options(arguments) | {"select": arguments.select.replace("-", "_")}

    @classmethod
    def draw(cls, history: Sequence[Mapping[str, float]], folder: Path) -> None:
        if any(OVERLAP_MEAN in row for row in history):
            plot_overlap({"mean of the layers": history}, folder / "overlap.png")

    def after_epoch(self, epoch: int) -> dict[str, float]:
        model = self.training.ranks.whole_model(self.model)
        if model is None:
            return {}
        overlap, seconds = timed(self.device, lambda: measure_overlap(model))
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
