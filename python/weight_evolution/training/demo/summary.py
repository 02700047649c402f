"""The demo's tables, and what they say."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from weight_evolution.tables import table

from . import learning_rates
from .intervals import comparison, with_interval
from .random_labels import RandomLabels
from .runs import Run
from .stationary import Stationary


def describe_random_labels(options: RandomLabels, rows: dict[str, tuple[str, float]], runs: Sequence[Run]) -> str:
    """The first part.

    Args:
        options: the tasks.
        rows: name of the row -> method and learning rate; the first is compared to the others.
        runs: of all rows.
    """
    baseline, *others = rows
    cells = [["method", "Adam's lr", "online accuracy %", "dead units at the end"]]
    for row, (_, lr) in rows.items():
        own = [run for run in runs if run.method == row]
        accuracy = with_interval([run.last_half("accuracy") for run in own], 1)
        dead = with_interval([run.last("dead_units") for run in own], 0)
        cells.append([row, f"{lr:g}", accuracy, f"{dead} of {own[0].last('units')}"])
    return "\n".join(
        [
            f"Where units die: {options.describe()}",
            "",
            *table(cells),
            "",
            "online accuracy: of every batch before the network learns from it, mean over the last half of the tasks; "
            f"mean and 95% interval over seeds {_seeds(runs)} (Student's t); chance is 10",
            f"learning rates: of {', '.join(f'{lr:g}' for lr in learning_rates.GRID)} the best for each method on "
            f"other seeds ({', '.join(map(str, learning_rates.TUNING_SEEDS))})",
            *(comparison(runs, row, baseline, lambda run: run.last_half("accuracy")) for row in others),
        ]
    )


def describe_stationary(options: Stationary, runs: Sequence[Run]) -> str:
    """The second part."""
    methods = list(dict.fromkeys(run.method for run in runs))
    cells = [["method", "test accuracy %", "units that started anew", "share of time"]]
    for method in methods:
        own = [run for run in runs if run.method == method]
        seconds = statistics.fmean(run.total("evolution_seconds") + run.total("reactivation_seconds") for run in own)
        share = 100 * seconds / (seconds + statistics.fmean(run.total("train_seconds") for run in own))
        revived = with_interval([run.total("reactivation_revived") for run in own], 0)
        cells.append(
            [
                method,
                with_interval([run.last("test_accuracy") for run in own], 2),
                revived if method == "reactivation" else "-",
                f"{share:.2f}%" if seconds else "-",
            ]
        )
    return "\n".join(
        [
            f"Where they do not: {options.describe()}",
            "",
            *table(cells),
            "",
            f"test accuracy: of the last epoch; mean and 95% interval over seeds {_seeds(runs)}",
            *(comparison(runs, method, methods[0], lambda run: run.last("test_accuracy")) for method in methods[1:]),
        ]
    )


def _seeds(runs: Sequence[Run]) -> str:
    return ", ".join(map(str, dict.fromkeys(run.seed for run in runs)))
