"""Low-rank projection against its rivals at equal budgets: trains, prints and writes a table.

    python -m experiments.low_rank [--data fashion-mnist] [--output DIR]

Writes table.md and results.json to the output folder; runs found there are not trained again. All rows of a seed start
from the same weights and train on the same batches. The recipe was chosen by the baseline alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from experiments import common
from weight_evolution import LowRankProjection
from weight_evolution.low_rank import count_macs
from weight_evolution.training import UserError
from weight_evolution.training.arguments import fraction, positive_float, positive_int
from weight_evolution.training.data import Dataset
from weight_evolution.training.trainer import Trainer

BASELINE, TRUNCATED, FINE_TUNED = "baseline", "baseline, truncated", "truncated, then fine-tuned"
VARIANTS = {
    "projection, no energy transfer": {"energy_transfer": False, "rectify": True},
    "projection, no rectification": {"energy_transfer": True, "rectify": False},
    "projection with both": {"energy_transfer": True, "rectify": True},
}
ROWS = (BASELINE, TRUNCATED, FINE_TUNED, *VARIANTS)


@dataclass(frozen=True, kw_only=True)
class Recipe(common.Recipe):
    """What a run depends on, beside its seed and method."""

    prune_ratio: float
    fine_tune_epochs: int
    """Of the epochs; those before train the network that is truncated, with a whole schedule of their own."""
    fine_tune_lr: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    given = _parser().parse_args(arguments)
    return common.run_main("low_rank", given, lambda setting: run(_recipe(given), setting))


def run(recipe: Recipe, setting: common.Setting) -> str:
    """Train what is missing in the setting's folder; returns the table and writes it there."""

    def train(training: str, seed: int, dataset: Dataset) -> dict[str, common.Result]:
        return _train(training, recipe, seed, dataset, setting.device)

    rows = common.collect(recipe, setting, (BASELINE, FINE_TUNED, *VARIANTS), train)
    return common.write(recipe, setting, rows, _table(recipe, setting.seeds, rows))


def _train(
    training: str, recipe: Recipe, seed: int, dataset: Dataset, device: torch.device
) -> dict[str, common.Result]:
    """Row of the table -> result; the baseline's run gives two."""
    start = time.perf_counter()
    if training == BASELINE:
        trainer = common.finish(Trainer(recipe.config(), seed, dataset, device))
        models = {BASELINE: trainer.model, TRUNCATED: _truncate(trainer.model, recipe)}
    elif training == FINE_TUNED:
        first = recipe.config(epochs=recipe.epochs - recipe.fine_tune_epochs)
        truncated = _truncate(common.finish(Trainer(first, seed, dataset, device)).model, recipe)
        second = recipe.config(epochs=recipe.fine_tune_epochs, lr=recipe.fine_tune_lr)
        models = {FINE_TUNED: common.finish(Trainer(second, seed, dataset, device, truncated)).model}
    else:
        options = {
            "prune_ratio": recipe.prune_ratio,
            "mac_budget": None,
            "linear": False,
            "every_iterations": None,
            "optimizer_state": "keep",
            **VARIANTS[training],
        }
        config = recipe.config(method="low-rank", method_options={"low-rank": options})
        compact = common.finish(Trainer(config, seed, dataset, device)).methods["low-rank"].compact()
        assert compact is not None
        models = {training: compact}
    seconds = time.perf_counter() - start
    return {row: {**_measure(model, dataset), "seconds": seconds} for row, model in models.items()}


def _truncate(model: nn.Module, recipe: Recipe) -> nn.Module:
    """Best approximation of the weights themselves, as one truncates without this method."""
    return LowRankProjection(model, prune_ratio=recipe.prune_ratio, rectify_batch_norm=False).compact()


def _measure(model: nn.Module, dataset: Dataset) -> common.Result:
    image = torch.zeros(1, *dataset.train_images.shape[1:], device=dataset.train_images.device)
    return {
        "test_accuracy": common.accuracy(model, dataset),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "macs": count_macs(model, (image,))[0],
    }


def _table(recipe: Recipe, seeds: Sequence[int], rows: dict[str, list[dict[str, Any]]]) -> str:
    whole = rows[BASELINE][0]

    def size(row: str, key: str) -> str:
        value = rows[row][0][key]
        return f"{value:,} ({value / whole[key]:.1%})"

    head = (
        f"{recipe.describe()}, prune ratio {recipe.prune_ratio}, seeds {' '.join(map(str, seeds))}.\n"
        f"Fine-tuned: {recipe.epochs - recipe.fine_tune_epochs} epochs, truncation, then "
        f"{recipe.fine_tune_epochs} epochs of the compact network at lr {recipe.fine_tune_lr}.\n"
        "Accuracy: test set, last epoch, of the network whose size stands beside it; mean +- standard deviation.\n\n"
    )
    return head + common.markdown(
        ("method", "test accuracy %", "parameters", "MACs"),
        [
            (row, common.mean_and_deviation(rows[row], "test_accuracy"), size(row, "parameters"), size(row, "macs"))
            for row in ROWS
        ],
    )


def _recipe(given: argparse.Namespace) -> Recipe:
    base = common.recipe_of(given)
    epochs = base["epochs"] // 2 if given.fine_tune_epochs is None else given.fine_tune_epochs
    if not 0 < epochs < base["epochs"]:
        raise UserError(f"--fine-tune-epochs must be in [1, {base['epochs'] - 1}], got {epochs}")
    if given.prune_ratio == 1:
        raise UserError("--prune-ratio must be below 1, got 1.0")
    lr = base["lr"] / 10 if given.fine_tune_lr is None else given.fine_tune_lr
    return Recipe(**base, prune_ratio=given.prune_ratio, fine_tune_epochs=epochs, fine_tune_lr=lr)


def _parser() -> argparse.ArgumentParser:
    parser = common.parser(__doc__)
    parser.add_argument("--prune-ratio", type=fraction, default=0.6)
    parser.add_argument("--fine-tune-epochs", type=positive_int, metavar="E", help="default half of the epochs")
    parser.add_argument("--fine-tune-lr", type=positive_float, metavar="LR", help="default a tenth of --lr")
    return parser


if __name__ == "__main__":
    sys.exit(main())
