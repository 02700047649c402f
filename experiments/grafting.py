"""Filter grafting against plain averaging and distillation at equal schedules: trains, prints and writes a table.

    python -m experiments.grafting [--data fashion-mnist] [--output DIR]

Writes table.md and results.json to the output folder; runs found there are not trained again. In all rows of a seed the
network (the first, where there are two) starts from the same weights, trains on the same batches and for the same
epochs. The recipe was chosen by the baseline alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import common
from weight_evolution.training import UserError
from weight_evolution.training.arguments import positive_float, positive_int
from weight_evolution.training.checkpoint import save_checkpoint
from weight_evolution.training.data import Dataset
from weight_evolution.training.networks import Networks
from weight_evolution.training.trainer import Trainer

TEACHER, BASELINE, DISTILLED = "teacher", "baseline", "distillation"
GRAFTED = {"grafting": (0.4, False), "plain averaging": (0.0, False), "grafting+": (0.4, True)}
"""Row -> strength, and whether there is a teacher."""
ROWS = (TEACHER, BASELINE, "grafting", "plain averaging", DISTILLED, "grafting+")
_TEACHER_MODELS = {"resnet8": "resnet20", "resnet20": "resnet32", "resnet32": "resnet56"}
_TEMPERATURE = 2.0


@dataclass(frozen=True, kw_only=True)
class Recipe(common.Recipe):
    """What a run depends on, beside its seed and method."""

    teacher_model: str
    networks: int
    graft_learning_rates: list[float]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    given = _parser().parse_args(arguments)
    return common.run_main("grafting", given, lambda setting: run(_recipe(given), setting))


def run(recipe: Recipe, setting: common.Setting) -> str:
    """Train what is missing in the setting's folder; returns the table and writes it there."""

    def train(training: str, seed: int, dataset: Dataset) -> dict[str, common.Result]:
        start = time.perf_counter()
        result = _train(training, recipe, seed, dataset, setting)
        return {training: {**result, "seconds": time.perf_counter() - start}}

    rows = common.collect(recipe, setting, ROWS, train)
    return common.write(recipe, setting, rows, _table(recipe, setting.seeds, rows))


def _train(training: str, recipe: Recipe, seed: int, dataset: Dataset, setting: common.Setting) -> common.Result:
    checkpoint = setting.folder / f"teacher-seed-{seed}.pt"
    if training in GRAFTED:
        strength, taught = GRAFTED[training]
        options = {"grafting": _grafting(recipe, strength), **(_distillation(recipe, checkpoint) if taught else {})}
        config = recipe.config(method="+".join(options), method_options=options)
        networks = Networks(config, seed, dataset, setting.device)
        while networks.epoch < config.epochs:
            networks.run_epoch()
        last = [trainer.history[-1] for trainer in networks.trainers.values()]
        return {**_result(last[0]), "best_network_test_accuracy": max(row["test_accuracy"] for row in last)}
    if training == DISTILLED:
        options = _distillation(recipe, checkpoint)
        config = recipe.config(method=DISTILLED, method_options=options)
    else:
        config = recipe.config(**({"model": recipe.teacher_model} if training == TEACHER else {}))
    trainer = common.finish(Trainer(config, seed, dataset, setting.device))
    if training == TEACHER:
        save_checkpoint(trainer.state_dict(), checkpoint)
    return _result(trainer.history[-1])


def _result(last: dict[str, float]) -> common.Result:
    return {key: last[key] for key in ("test_accuracy", "invalid_filters_0.1", "filters")}


def _grafting(recipe: Recipe, strength: float) -> dict[str, Any]:
    return {
        "networks": recipe.networks,
        "learning_rates": recipe.graft_learning_rates,
        "level": "layer",
        "criterion": "entropy",
        "strength": strength,
        "sharpness": 500.0,
        "bins": 10,
        "every": 1,
    }


def _distillation(recipe: Recipe, checkpoint: Path) -> dict[str, Any]:
    if not checkpoint.exists():
        raise UserError(f"{checkpoint} is gone; remove the teacher's run of that seed, too, to train it again")
    return {DISTILLED: {"teachers": [str(checkpoint)], "temperature": _TEMPERATURE, "data": recipe.data}}


def _table(recipe: Recipe, seeds: Sequence[int], rows: dict[str, list[dict[str, Any]]]) -> str:
    rates = " and ".join(map(str, recipe.graft_learning_rates))
    head = (
        f"{recipe.describe()}, seeds {' '.join(map(str, seeds))}. Teacher: {recipe.teacher_model}, one per seed, "
        f"temperature {_TEMPERATURE:g}.\n"
        f"Grafting and averaging train {recipe.networks} networks, learning rates {rates}, so {recipe.networks} times "
        "the work; grafting+ is grafting with the teacher.\n"
        "Accuracy: test set, last epoch, mean +- standard deviation; of the first network, and of that network of a "
        "run which is the best on the test set, which only flatters.\n\n"
    )

    def cells(row: str) -> tuple[str, ...]:
        runs = rows[row]
        best = "-"
        if row in GRAFTED:
            best = common.mean_and_deviation(runs, "best_network_test_accuracy")
        invalid = f"{common.mean_and_deviation(runs, 'invalid_filters_0.1', 1)} of {runs[0]['filters']}"
        name = f"{row} ({recipe.teacher_model})" if row == TEACHER else row
        return name, common.mean_and_deviation(runs, "test_accuracy"), best, invalid

    header = ("method", "test accuracy %", f"best of {recipe.networks} networks %", "filters with L1 norm under 0.1")
    return head + common.markdown(header, map(cells, ROWS))


def _recipe(given: argparse.Namespace) -> Recipe:
    base = common.recipe_of(given)
    teacher = given.teacher_model or _TEACHER_MODELS.get(base["model"])
    if teacher is None:
        raise UserError(f"--teacher-model has no default for a {base['model']}; pass one")
    rates = given.graft_learning_rates or [base["lr"]] * given.networks
    if given.networks < 2 or len(rates) != given.networks:
        raise UserError(f"--networks must be at least 2, with one of --graft-learning-rates each; got {len(rates)}")
    return Recipe(**base, teacher_model=teacher, networks=given.networks, graft_learning_rates=rates)


def _parser() -> argparse.ArgumentParser:
    parser = common.parser(__doc__)
    parser.add_argument("--teacher-model", help="default resnet32 for resnet20, resnet20 for resnet8")
    parser.add_argument("--networks", type=positive_int, default=2, metavar="K", help="default 2")
    parser.add_argument(
        "--graft-learning-rates", type=positive_float, nargs="+", metavar="LR", help="one each (default: all --lr)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
