"""Which learning rate is best for each method of the demo's first part: trains all, prints a table.

    python -m experiments.demo_learning_rates [--processes 2]

The seeds are others than those that the demo shows. What is printed as best is written down in
``weight_evolution/training/demo/learning_rates.py``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from functools import partial

import torch
from tqdm import tqdm

from experiments.common import markdown
from weight_evolution.training.arguments import non_negative_int, positive_float, positive_int
from weight_evolution.training.demo.intervals import with_interval
from weight_evolution.training.demo.learning_rates import GRID, TUNING_SEEDS
from weight_evolution.training.demo.random_labels import METHODS, RandomLabels, train_on_random_labels
from weight_evolution.training.demo.runs import Run, run_all


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and print; returns the exit status."""
    default = RandomLabels()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=non_negative_int, nargs="+", default=list(TUNING_SEEDS), metavar="N")
    parser.add_argument("--rates", type=positive_float, nargs="+", default=list(GRID), metavar="LR")
    parser.add_argument("--methods", choices=METHODS, nargs="+", default=list(METHODS), metavar="METHOD")
    parser.add_argument("--tasks", type=positive_int, default=default.tasks)
    parser.add_argument("--task-epochs", type=positive_int, default=default.epochs)
    parser.add_argument("--processes", type=positive_int, default=1)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options = RandomLabels(tasks=given.tasks, epochs=given.task_epochs)
    jobs = [
        partial(train_on_random_labels, options, f"{method} {lr:g}", method, lr, seed, torch.device("cpu"))
        for seed in given.seeds
        for method in given.methods
        for lr in given.rates
    ]
    with tqdm(total=len(jobs), unit="run") as bar:
        runs = run_all(jobs, given.processes, bar.update)
    print(f"{options.describe()}; accuracy over the last half of the tasks, seeds {' '.join(map(str, given.seeds))}\n")
    print(_table(given.methods, given.rates, runs))
    return 0


def _table(methods: Sequence[str], rates: Sequence[float], runs: Sequence[Run]) -> str:
    rows = []
    for method in methods:
        accuracies = {
            lr: [run.last_half("accuracy") for run in runs if run.method == f"{method} {lr:g}"] for lr in rates
        }
        best = max(rates, key=lambda lr: statistics.fmean(accuracies[lr]))
        rows.append([method, *(with_interval(accuracies[lr], 1) for lr in rates), f"{best:g}"])
    return markdown(["method", *(f"lr {lr:g}" for lr in rates), "best"], rows)


if __name__ == "__main__":
    sys.exit(main())
