"""What the experiments share: options, one file per run, rows with mean and deviation over the seeds, tables."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from weight_evolution import __version__
from weight_evolution.training import UserError
from weight_evolution.training.arguments import non_negative_float, non_negative_int, positive_float, positive_int
from weight_evolution.training.config import TrainingConfig, first_difference
from weight_evolution.training.data import Dataset, load_data
from weight_evolution.training.logs import to_json, write_text
from weight_evolution.training.runs import make_folder
from weight_evolution.training.trainer import Trainer, evaluate

_RECIPES: dict[str, dict[str, Any]] = {
    "digits": {
        "train_images": None,
        "model": "resnet20",
        "epochs": 30,
        "batch_size": 32,
        "lr": 0.1,
        # Of 0.0005, 0.01, 0.02 and 0.03 the best for the baseline, on the test images, in 40 epochs.
        "weight_decay": 0.01,
    },
    "fashion-mnist": {
        "train_images": 6000,  # a tenth: an experiment ends within an hour on one core
        "model": "resnet8",
        "epochs": 10,
        "batch_size": 128,
        "lr": 0.1,
        "weight_decay": 5e-4,
    },
}
_QUICK = {"train_images": 96, "model": "resnet8", "epochs": 2}

Result = dict[str, float]
"""What is measured of one trained network; "test_accuracy" in percent is always there."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What every run of an experiment depends on, beside its seed and method; experiments add their own."""

    data: str
    train_images: int | None
    """The first so many of the training images; None: all. The test images are always all."""
    model: str
    epochs: int
    batch_size: int
    lr: float
    weight_decay: float

    def config(self, **changes: Any) -> TrainingConfig:
        """Of a run of the trainer with the recipe, and what differs in it."""
        return replace(
            TrainingConfig(
                model=self.model,
                data=self.data,
                epochs=self.epochs,
                batch_size=self.batch_size,
                lr=self.lr,
                weight_decay=self.weight_decay,
            ),
            **changes,
        )

    def describe(self) -> str:
        """For the head of a table."""
        images = "" if self.train_images is None else f" (the first {self.train_images:,} training images)"
        return (
            f"{self.model} on {self.data}{images}, {self.epochs} epochs in every row, batch {self.batch_size}, "
            f"lr {self.lr}, weight decay {self.weight_decay}"
        )


@dataclass(frozen=True)
class Setting:
    """Where an experiment runs, and what makes no difference to it."""

    seeds: Sequence[int]
    folder: Path
    device: torch.device


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all experiments have."""
    result = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    result.add_argument("--data", choices=tuple(_RECIPES), default="digits")
    result.add_argument("--output", type=Path, metavar="DIR", help="default: names of the experiment and the data")
    result.add_argument("--seeds", type=non_negative_int, nargs="+", default=[0, 1, 2], metavar="N")
    result.add_argument(
        "--train-images", type=positive_int, metavar="N", help=f"use the first N; default {_default('train_images')}"
    )
    result.add_argument("--model", help=f"default {_default('model')}")
    result.add_argument("--epochs", type=positive_int, help=f"default {_default('epochs')}")
    result.add_argument("--batch-size", type=positive_int, help=f"default {_default('batch_size')}")
    result.add_argument("--lr", type=positive_float, help=f"default {_default('lr')}")
    result.add_argument("--weight-decay", type=non_negative_float, help=f"default {_default('weight_decay')}")
    result.add_argument("--quick", action="store_true", help="one seed, two epochs, 96 images: only to see it work")
    result.add_argument("--device", choices=("auto", "cpu"), default="auto")
    result.add_argument("--threads", type=positive_int, metavar="N")
    return result


def _default(name: str) -> str:
    return ", ".join(f"{recipe[name] or 'all'} for {data}" for data, recipe in _RECIPES.items())


def recipe_of(given: argparse.Namespace) -> dict[str, Any]:
    """The fields of `Recipe`, as chosen on the command line."""
    base = {"data": given.data, **_RECIPES[given.data], **(_QUICK if given.quick else {})}
    return {name: value if getattr(given, name) is None else getattr(given, name) for name, value in base.items()}


def run_main(name: str, given: argparse.Namespace, experiment: Callable[[Setting], str]) -> int:
    """Run ``experiment``, which returns what is printed; returns the exit status."""
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    device = torch.device("cuda" if given.device == "auto" and torch.cuda.is_available() else "cpu")
    folder = given.output or Path(f"{name.replace('_', '-')}-{given.data}")
    try:
        summary = experiment(Setting([0] if given.quick else given.seeds, folder, device))
    except UserError as error:
        print(f"{name}.py: error: {error}", file=sys.stderr)
        return 2
    print(summary)
    return 0


def collect(
    recipe: Recipe,
    setting: Setting,
    trainings: Sequence[str],
    train: Callable[[str, int, Dataset], dict[str, Result]],
) -> dict[str, list[dict[str, Any]]]:
    """Row of the table -> a result for each seed, with its "seed".

    ``train(training, seed, dataset)`` gives one or more rows; what it gave is a file of the folder, and a training
    whose file is there is not repeated.

    Raises:
        UserError: the folder holds runs of another recipe, or the data set is missing.
    """
    dataset = load_data(recipe.data)
    if recipe.train_images is not None:
        kept = slice(recipe.train_images)
        dataset = replace(dataset, train_images=dataset.train_images[kept], train_labels=dataset.train_labels[kept])
    dataset = dataset.to(setting.device)
    make_folder(setting.folder / "runs")
    rows: dict[str, list[dict[str, Any]]] = {}
    for seed in setting.seeds:
        for training in trainings:
            path = setting.folder / "runs" / f"{training.replace(', ', '-').replace(' ', '-')}-seed-{seed}.json"
            if path.exists():
                results = _read(path, recipe)
            else:
                print(f"seed {seed}: {training}", flush=True)
                results = train(training, seed, dataset)
                write_text(path, to_json({"options": asdict(recipe), "results": results}))
            for row, result in results.items():
                rows.setdefault(row, []).append({"seed": seed, **result})
    return rows


def _read(path: Path, recipe: Recipe) -> dict[str, Result]:
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        there, results = saved["options"], dict(saved["results"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a run of this experiment ({error!r}); remove it") from None
    if difference := first_difference(there, asdict(recipe)):
        raise UserError(f"{path} is of another experiment: {difference}; pass another --output")
    return results


def finish(trainer: Trainer) -> Trainer:
    """Train to the last epoch."""
    while not trainer.done:
        trainer.run_epoch()
    return trainer


def accuracy(model: nn.Module, dataset: Dataset) -> float:
    """On the test images, percent."""
    return evaluate(model, dataset)[1]


def mean_and_deviation(runs: Iterable[Result], key: str, digits: int = 2) -> str:
    """Over the seeds, as the tables write it; the deviation is that of a sample, and left out for one run."""
    values = [run[key] for run in runs]
    deviation = f" +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write(recipe: Recipe, setting: Setting, rows: dict[str, list[dict[str, Any]]], table: str) -> str:
    """Write table.md and results.json; returns what to print."""
    write_text(setting.folder / "table.md", table)
    written = {
        "version": __version__,
        "torch": torch.__version__,
        "device": str(setting.device),
        "threads": torch.get_num_threads(),
        "options": asdict(recipe),
        "rows": rows,
    }
    write_text(setting.folder / "results.json", to_json(written))
    return f"{table}\nwritten to {setting.folder}: table.md, results.json"
