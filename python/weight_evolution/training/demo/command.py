"""The demo: where units die and start anew, and where they do not."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from we_kernels import __version__

from ...extras import install
from ..arguments import non_negative_int, option, positive_int
from ..errors import UserError
from ..logs import to_json, write_log, write_text
from ..runs import make_folder
from . import learning_rates, stationary
from .random_labels import RandomLabels, train_on_random_labels
from .runs import Run, run_all
from .stationary import Stationary, train_on_digits
from .summary import describe_random_labels, describe_stationary

_REVIVED = learning_rates.CHOSEN["reactivation"]
ROWS = {
    "baseline": ("baseline", learning_rates.CHOSEN["baseline"]),
    f"baseline at {_REVIVED:g}": ("baseline", _REVIVED),
    **{name: (name, lr) for name, lr in learning_rates.CHOSEN.items() if name != "baseline"},
}
"""Of the first table: name -> method and learning rate; the baseline at reactivation's, too."""


@dataclass(frozen=True)
class DemoOptions:
    """Seeds and output of both parts; nothing of a run depends on ``processes``."""

    folder: Path = option(Path("demo-output"), flag="output", type=Path, metavar="DIR")
    seeds: tuple[int, ...] = option((0, 1, 2, 3, 4), type=non_negative_int, nargs="+", metavar="N")
    random_labels: RandomLabels = field(default_factory=RandomLabels)
    stationary: Stationary = field(default_factory=Stationary)
    processes: int = option(1, type=positive_int, metavar="N")


def run_demo(options: DemoOptions, device: torch.device, quiet: bool = False) -> str:
    """Train every method from every seed, write the results to the folder and return the readable summary.

    ``quiet``: without a progress bar.

    Raises:
        UserError: a package is missing, or the folder cannot be made.
    """
    try:
        from tqdm import tqdm

        from .figure import plot_demo
    except ImportError as error:
        raise UserError(f"the demo needs {error.name}: {install('train')}") from None
    make_folder(options.folder)
    first = [
        partial(train_on_random_labels, options.random_labels, row, method, lr, seed, device)
        for seed in options.seeds
        for row, (method, lr) in ROWS.items()
    ]
    second = [
        partial(train_on_digits, options.stationary, method, seed, device)
        for seed in options.seeds
        for method in stationary.METHODS
    ]
    start = time.perf_counter()
    with tqdm(total=len(first) + len(second), unit="run", disable=quiet) as bar:
        runs = run_all([*first, *second], options.processes, bar.update)
    seconds = time.perf_counter() - start

    random_labels, ordinary = runs[: len(first)], runs[len(first) :]
    summary = "\n".join(
        [
            describe_random_labels(options.random_labels, ROWS, random_labels),
            "",
            describe_stationary(options.stationary, ordinary),
            "",
            f"{seconds:.0f} s on {device}, {options.processes} processes of {torch.get_num_threads()} threads",
        ]
    )
    write_text(options.folder / "results.json", to_json(results(options, random_labels, ordinary, seconds, device)))
    write_log(_rows(random_labels), options.folder / "tasks.csv")
    write_log(_rows(ordinary), options.folder / "epochs.csv")
    write_text(options.folder / "summary.txt", summary + "\n")
    plot_demo(random_labels, ordinary, options.folder / "figure.png")
    return f"{summary}\n\nwritten to {options.folder}: figure.png, summary.txt, results.json, tasks.csv, epochs.csv"


def results(
    options: DemoOptions, random_labels: Sequence[Run], ordinary: Sequence[Run], seconds: float, device: torch.device
) -> dict[str, Any]:
    """All that the tables were made from."""
    return {
        "version": __version__,
        "torch": torch.__version__,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "processes": options.processes,
        "seconds": seconds,
        "random_labels": {
            "options": asdict(options.random_labels),
            "learning_rate_grid": learning_rates.GRID,
            "rows": {row: {"method": method, "lr": lr} for row, (method, lr) in ROWS.items()},
            "runs": [
                {
                    "method": run.method,
                    "seed": run.seed,
                    "accuracy_of_last_half": run.last_half("accuracy"),
                    "dead_units": run.last("dead_units"),
                    "units": run.last("units"),
                    "seconds": run.total("seconds"),
                }
                for run in random_labels
            ],
        },
        "stationary": {
            "configs": {method: options.stationary.config(method).to_dict() for method in stationary.METHODS},
            "runs": [
                {
                    "method": run.method,
                    "seed": run.seed,
                    "last_epoch_test_accuracy": run.last("test_accuracy"),
                    "revived": run.total("reactivation_revived"),
                    "train_seconds": run.total("train_seconds"),
                }
                for run in ordinary
            ],
        },
    }


def _rows(runs: Sequence[Run]) -> list[Mapping[str, Any]]:
    return [{"method": run.method, "seed": run.seed, **row} for run in runs for row in run.history]
