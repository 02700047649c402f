"""Weight asynchronous update against SGD at the full and at lower learning rates: trains, prints and writes a table.

    python -m experiments.asynchronous [--data fashion-mnist] [--output DIR]

Writes table.md, overlap.png and results.json to the output folder; runs found there are not trained again. All rows
of a seed start from the same weights and train on the same batches. The recipe was chosen by the baseline alone.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from experiments import common
from weight_evolution.asynchronous.targets import expected_share
from weight_evolution.training.data import Dataset
from weight_evolution.training.overlap_plot import plot_overlap
from weight_evolution.training.trainer import Trainer

RATES = (0.25, 0.5, 0.75)
_PLAIN = {"rate": 1.0, "select": "filters", "replacement": False, "rescale": False}
_RELEASED = {"select": "input_channels", "replacement": True}
ROWS: dict[str, tuple[float, dict[str, Any]]] = {
    "SGD": (1.0, _PLAIN),
    **{f"SGD, learning rate x {rate}": (rate, _PLAIN) for rate in RATES},
    **{f"filters, rate {rate}": (1.0, _PLAIN | {"rate": rate}) for rate in RATES},
    **{f"released rule, rate {rate}": (1.0, _PLAIN | _RELEASED | {"rate": rate}) for rate in RATES},
    "filters, rate 0.5, rescaled": (1.0, _PLAIN | {"rate": 0.5, "rescale": True}),
}
"""Row -> factor of the learning rate, and the method's options. Rate 1 is the plain optimizer, bit for bit."""
_CURVES = ("SGD", "SGD, learning rate x 0.5", "filters, rate 0.5", "released rule, rate 0.5", "filters, rate 0.25")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    given = common.parser(__doc__).parse_args(arguments)
    return common.run_main(
        "asynchronous", given, lambda setting: run(common.Recipe(**common.recipe_of(given)), setting)
    )


def run(recipe: common.Recipe, setting: common.Setting) -> str:
    """Train what is missing in the setting's folder; returns the table and writes it there."""

    def train(training: str, seed: int, dataset: Dataset) -> dict[str, common.Result]:
        start = time.perf_counter()
        factor, options = ROWS[training]
        config = recipe.config(lr=recipe.lr * factor, method="asynchronous", method_options={"asynchronous": options})
        history = common.finish(Trainer(config, seed, dataset, setting.device)).history
        result = {key: history[-1][key] for key in ("test_accuracy", "train_loss", "overlap_mean", "overlap_maximum")}
        by_epoch = {f"overlap_{row['epoch']}": row["overlap_mean"] for row in history}
        return {training: {**result, **by_epoch, "seconds": time.perf_counter() - start}}

    rows = common.collect(recipe, setting, tuple(ROWS), train)
    plot_overlap({row: _mean_history(recipe, rows[row]) for row in _CURVES}, setting.folder / "overlap.png")
    return common.write(recipe, setting, rows, _table(recipe, setting.seeds, rows))


def _mean_history(recipe: common.Recipe, runs: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    return [
        {"epoch": epoch, "overlap_mean": statistics.fmean(run[f"overlap_{epoch}"] for run in runs)}
        for epoch in range(recipe.epochs)
    ]


def _table(recipe: common.Recipe, seeds: Sequence[int], rows: dict[str, list[dict[str, Any]]]) -> str:
    shares = ", ".join(f"{expected_share(64, rate, True):.2f} at rate {rate}" for rate in RATES)
    head = (
        f"{recipe.describe()}, seeds {' '.join(map(str, seeds))}.\n"
        "Filters: a random subset of each convolution's filters moves in an iteration. Released rule: input channels, "
        f"drawn with replacement; of 64 channels the share that moves is {shares}. Rescaled: moves are divided by the "
        "share. Learning rate x r: of all parameters.\n"
        "Accuracy: test set, last epoch. Loss: training set, mean over the last epoch. Overlap: absolute cosine of the "
        "filters of a layer, mean over pairs and then layers; maximum: mean over filters of the largest. "
        "Mean +- standard deviation over the seeds.\n\n"
    )

    def cells(row: str) -> tuple[str, ...]:
        columns = {"test_accuracy": 2, "train_loss": 4, "overlap_mean": 4, "overlap_maximum": 4}
        return row, *(common.mean_and_deviation(rows[row], key, digits) for key, digits in columns.items())

    header = ("method", "test accuracy %", "training loss", "overlap", "maximum")
    return head + common.markdown(header, map(cells, ROWS))


if __name__ == "__main__":
    sys.exit(main())
