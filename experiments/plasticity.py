"""Plasticity: small networks whose task changes, with and without methods that revive units, at equal budgets.

    python -m experiments.plasticity --minutes 55                 # all settings; again, to go on where it ended
    python -m experiments.plasticity --setting conv mlp --minutes 20 --output a.jsonl
    python -m experiments.plasticity --table --output a.jsonl     # what is there so far

Every run is a line of the output file as soon as it is done. Learning rates are tuned for each method, on one grid and
with seeds of their own. Runs are trained many at once (`experiments.stacked`); what a run gives does not depend on its
company, but for rounding. Two processes with a file each use two cores; ``--table`` takes several files.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from experiments.continual import Images, load_images
from experiments.journal import Journal, Result, all_results, open_journals
from experiments.plasticity_settings import SETTINGS, Recipe, Run, chosen_lr
from experiments.plasticity_tables import tables
from experiments.plasticity_training import train
from weight_evolution.training import UserError
from weight_evolution.training.arguments import non_negative_int, positive_float, positive_int

_RECIPE = Recipe(
    data="digits",
    images=500,
    batch_size=50,
    iterations=200,
    tasks=20,
    adam_learning_rates=[3e-4, 1e-3, 3e-3, 1e-2, 3e-2],
    sgd_learning_rates=[3e-3, 1e-2, 3e-2, 1e-1],
    tuning_seeds=[100, 101],
    seeds=[0, 1, 2, 3, 4, 5],
)
_QUICK = replace(
    _RECIPE, iterations=20, tasks=4, adam_learning_rates=[1e-3, 1e-2], sgd_learning_rates=[1e-2, 1e-1], seeds=[0, 1]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment, or print its tables; returns the exit status."""
    given = _parser().parse_args(arguments)
    recipe = replace(_QUICK if given.quick else _RECIPE, data=given.data)
    changes = {name: value for name in ("images", "tasks", "iterations", "seeds") if (value := getattr(given, name))}
    recipe = replace(recipe, **changes)
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    try:
        if both := set(recipe.seeds) & set(recipe.tuning_seeds):
            raise UserError(f"--seeds must not hold {min(both)}, with which learning rates are tuned")
        journals = open_journals(given.output, recipe, Run, only_read=given.table)
        if not given.table:
            images = load_images(recipe.data, given.root)
            run_all(given.setting, recipe, journals[0], images, given.minutes, given.stack)
        results = all_results(journals)
        print("\n".join(tables(given.setting, recipe, results)))
    except UserError as error:
        print(f"plasticity.py: error: {error}", file=sys.stderr)
        return 2
    return 0


def run_all(
    names: Sequence[str], recipe: Recipe, journal: Journal[Run], images: Images, minutes: float | None, stack: int
) -> None:
    """Train what is missing, until the time is over: no stack is begun that would not be done by then."""
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    for name in names:
        cost = 0.0  # seconds for each network
        while runs := missing_runs(name, recipe, journal.results)[:stack]:
            if deadline is not None and cost:
                runs = runs[: max(0, int((deadline - time.monotonic()) / cost))]
            start = time.monotonic()
            results = train(runs, recipe, images, deadline) if runs else None
            if results is None:
                print(f"the time is over within {name}; the same command goes on", flush=True)
                return
            seconds = time.monotonic() - start
            cost = seconds / len(runs)
            for run, result in zip(runs, results, strict=True):
                journal.write(run, {**result, "seconds": round(cost, 2)})
            print(f"{name}: {len(runs)} runs in {seconds:.0f} s", flush=True)


def missing_runs(name: str, recipe: Recipe, results: Mapping[Run, Result]) -> list[Run]:
    """What to train next, for one kind of optimizer: first all that tunes, then what is reported."""
    setting = SETTINGS[name]
    tuning = setting.tuned_in or name
    arms = setting.arms
    runs = [Run(tuning, arm, lr, seed) for seed in recipe.tuning_seeds for arm in arms for lr in recipe.grid(setting)]
    missing = [run for run in runs if run not in results]
    if not missing:
        chosen = {arm: chosen_lr(tuning, arm, recipe, results) for arm in arms}
        runs = [Run(name, arm, lr, seed) for seed in recipe.seeds for arm, lr in chosen.items()]
        missing = [run for run in runs if run not in results]
    return [run for run in missing if arms[run.arm].own_age == arms[missing[0].arm].own_age]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--setting", nargs="+", choices=tuple(SETTINGS), default=list(SETTINGS), metavar="NAME")
    parser.add_argument("--data", default="digits", help="digits (default), fashion-mnist, cifar10 or npz:PATH")
    parser.add_argument("--root", type=Path, metavar="DIR", help="folder of the data set's files")
    parser.add_argument("--output", type=Path, nargs="+", default=[Path("plasticity.jsonl")], metavar="FILE")
    parser.add_argument("--minutes", type=positive_float, help="end after so many; default: when all is done")
    parser.add_argument("--table", action="store_true", help="only print the tables of what is there")
    parser.add_argument("--quick", action="store_true", help="4 tasks of 20 iterations: only to see it work")
    parser.add_argument("--images", type=positive_int, metavar="N", help=f"of a task; default {_RECIPE.images}")
    parser.add_argument("--tasks", type=positive_int, metavar="N", help=f"default {_RECIPE.tasks}")
    parser.add_argument("--iterations", type=positive_int, metavar="N", help=f"default {_RECIPE.iterations}")
    parser.add_argument(
        "--seeds", type=non_negative_int, nargs="+", metavar="N", help="of the reported runs; default 0 to 5"
    )
    parser.add_argument(
        "--stack", type=positive_int, default=24, metavar="R", help="networks trained at once; default 24"
    )
    parser.add_argument("--threads", type=positive_int, metavar="N")
    return parser


if __name__ == "__main__":
    sys.exit(main())
