"""What helps when: all methods and plain remedies in one study, at equal budgets, tuned alike.

    python -m experiments.study --data npz:cifar10.npz --minutes 120          # all tables; again, to go on
    python -m experiments.study --data npz:cifar10.npz --tables repair two    # these, in this order
    python -m experiments.study --data npz:cifar10.npz --device cuda --stack 64 --tuned arms --minutes 5
    python -m experiments.study --data npz:cifar10.npz --table                # what is there so far

Small networks on few small images, many at once (`experiments.stacked`). Every run is a line of the output file as soon
as its stack is done; trained networks that others start from lie in a folder beside it. What a run gives does not
depend on its company, but for rounding. ``--table`` takes several files, of several machines.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from experiments.journal import Journal, all_results, open_journals
from experiments.stacked_passes import FORMS
from experiments.study_arms import ARMS
from experiments.study_data import load_pool
from experiments.study_figure import plot
from experiments.study_networks import NETWORKS, PLAIN
from experiments.study_plan import next_stack
from experiments.study_settings import CONDITIONS, TABLES, Recipe, Run, Table, base_run
from experiments.study_tables import tables
from experiments.study_training import Place, TooLong, train
from weight_evolution.training import UserError
from weight_evolution.training.arguments import non_negative_int, positive_float, positive_int

_RECIPE = Recipe(
    data="cifar10",
    size=16,
    images=5000,
    network="vgg",
    batch_size=128,
    epochs=40,
    repair_epochs=10,
    momentum=0.9,
    large_lr=1.0,
    published_weight_decay=5e-4,
    large_weight_decay=0.03,
    label_noise=0.4,
    learning_rates=[0.03, 0.1, 0.3],
    weight_decays=[5e-4, 2e-3, 8e-3],
    tuned="arms",
    tuning_seeds=[100, 101],
    seeds=list(range(8)),
)
_QUICK = replace(
    _RECIPE,
    images=256,
    batch_size=64,
    epochs=2,
    repair_epochs=1,
    learning_rates=[0.03, 0.1],
    weight_decays=[2e-3],
    seeds=[0, 1],
)
_CHANGES = (
    *("data", "images", "network", "epochs", "repair_epochs", "learning_rates", "weight_decays"),
    *("tuned", "tuning_seeds", "seeds"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study, or print its tables; returns the exit status."""
    given = _parser().parse_args(arguments)
    changes = {name: value for name in _CHANGES if (value := getattr(given, name)) is not None}
    chosen = [TABLES[name].shortened() if given.main else TABLES[name] for name in given.tables]
    recipe = replace(_QUICK if given.quick else _RECIPE, **changes)
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    try:
        if both := set(recipe.seeds) & set(recipe.tuning_seeds):
            raise UserError(f"--seeds must not hold {min(both)}, with which values are tuned")
        if recipe.epochs < 2 and any(ARMS[arm].truncated for table in chosen for arm in table.arms):
            raise UserError("--epochs must be at least 2 with --tables low-rank: half of them follow the truncation")
        if recipe.network not in PLAIN and any(CONDITIONS[table.condition].pruned for table in chosen):
            raise UserError(
                f"--tables repair needs one of --network {' '.join(PLAIN)}: with shortcuts, filters of zeros are not "
                "dead; name the other tables"
            )
        journals = open_journals(given.output, recipe, Run, only_read=given.table)
        if not given.table:
            _run_all(given, chosen, recipe, journals[0])
        results = all_results(journals)
        print("\n".join(tables(chosen, recipe, results)))
        if given.figure is not None:
            plot(chosen, recipe, results, given.figure)
    except UserError as error:
        print(f"study.py: error: {error}", file=sys.stderr)
        return 2
    return 0


def _run_all(given: argparse.Namespace, chosen: Sequence[Table], recipe: Recipe, journal: Journal[Run]) -> None:
    """Train what is missing, until the time is over."""
    deadline = None if given.minutes is None else time.monotonic() + 60 * given.minutes
    device = _device(given.device)
    form = given.form or ("products" if device.type == "cuda" and recipe.network in PLAIN else "each")
    pool = load_pool(recipe.data, given.root, recipe.size, device)
    place = Place(pool, given.output[0].with_suffix(".states"), form, deadline)
    failed: set[Run] = set()
    size = given.stack
    while runs := next_stack(chosen, recipe, journal.results, place, size, failed):
        start = time.monotonic()
        bases = {run.seed: base for run in runs if (base := base_run(recipe, journal.results, run.seed))}
        networks = sum(ARMS[run.arm].networks for run in runs)
        try:
            results = train(runs, recipe, place, bases)
        except TooLong:
            if len(runs) == 1:
                print("the time is over; the same command goes on", flush=True)
                return
            size = networks // 2
            continue
        seconds = time.monotonic() - start
        for run, result in zip(runs, results, strict=True):
            if isinstance(result, str):
                failed.add(run)
            else:
                share = seconds * ARMS[run.arm].networks / networks
                journal.write(run, {**result, "seconds": round(share, 2), "device": device.type})
        what = sorted({f"{run.condition}, {run.arm}" for run in runs})
        print(f"{len(runs)} runs, {networks} networks in {seconds:.0f} s: {'; '.join(what)}", flush=True)
    if failed:
        print(f"{len(failed)} runs have failed, see above", file=sys.stderr)


def _device(name: str) -> torch.device:
    if name == "cuda":
        if not torch.cuda.is_available():
            raise UserError("--device cuda: PyTorch sees no GPU")
        torch.set_float32_matmul_precision("high")  # TF32, as convolutions have it by default
    return torch.device(name)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tables", nargs="+", choices=tuple(TABLES), default=list(TABLES), metavar="NAME")
    parser.add_argument("--main", action="store_true", help="only the arms of each table that the advice rests on")
    parser.add_argument("--data", help="cifar10 (default), fashion-mnist, digits or npz:PATH")
    parser.add_argument("--root", type=Path, metavar="DIR", help="folder of the data set's files")
    parser.add_argument("--output", type=Path, nargs="+", default=[Path("study.jsonl")], metavar="FILE")
    parser.add_argument("--minutes", type=positive_float, help="end after so many; default: when all is done")
    parser.add_argument("--table", action="store_true", help="only print the tables of what is there")
    parser.add_argument("--figure", type=Path, metavar="PNG", help="draw the differences, too")
    parser.add_argument("--quick", action="store_true", help="2 epochs of 256 images: only to see it work")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--form", choices=tuple(FORMS), help="of the passes; default: the fastest on the device")
    parser.add_argument(
        "--stack", type=positive_int, default=8, metavar="R", help="networks trained at once; default 8"
    )
    parser.add_argument("--threads", type=positive_int, metavar="N")
    parser.add_argument("--network", choices=NETWORKS)
    parser.add_argument("--images", type=positive_int, metavar="N", help=f"of a seed; default {_RECIPE.images}")
    parser.add_argument("--epochs", type=positive_int, help=f"default {_RECIPE.epochs}")
    parser.add_argument(
        "--repair-epochs", type=positive_int, help=f"of pruned networks; default {_RECIPE.repair_epochs}"
    )
    for name in ("learning-rates", "weight-decays"):
        values = " ".join(f"{value:g}" for value in getattr(_RECIPE, name.replace("-", "_")))
        parser.add_argument(
            f"--{name}", type=positive_float, nargs="+", metavar="X", help=f"to choose from; default {values}"
        )
    parser.add_argument(
        "--tuned",
        choices=("arms", "baselines"),
        help="which arms get values of their own; default arms; baselines: the methods take the baseline's",
    )
    parser.add_argument("--tuning-seeds", type=non_negative_int, nargs="+", metavar="N", help="default 100 101")
    parser.add_argument("--seeds", type=non_negative_int, nargs="+", metavar="N", help="reported; default 0 to 7")
    return parser


if __name__ == "__main__":
    sys.exit(main())
