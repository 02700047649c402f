"""The tables of the study."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

from experiments.common import markdown
from experiments.paired import Comparisons, with_interval
from experiments.study_arms import ARMS, BASELINE
from experiments.study_settings import CONDITIONS, Recipe, Results, Run, Table, chosen_values, grid


def tables(chosen: Sequence[Table], recipe: Recipe, results: Results) -> Iterator[str]:
    """One for each of these of which something is to be reported."""
    yield _head(recipe)
    for table in chosen:
        rows = {row: reported(*source, recipe, results) for row, source in table.rows.items()}
        if any(rows.values()):
            yield _table(table, recipe, results, rows)
        else:
            yield f"{table.title}: nothing to report yet\n"


def reported(condition: str, arm: str, recipe: Recipe, results: Results) -> dict[int, Run]:
    """Seed -> run, of those that are done with the chosen values."""
    values = chosen_values(condition, arm, recipe, results)
    if values is None:
        return {}
    runs = {seed: Run(condition, arm, *values, seed) for seed in recipe.seeds}
    return {seed: run for seed, run in runs.items() if run in results}


def differences(rows: dict[str, dict[int, Run]], other: str, results: Results) -> dict[str, list[float]]:
    """Row -> its accuracies minus those of the ``other`` row, seed by seed."""
    base = rows[other]
    return {
        row: [results[run]["accuracy"] - results[base[seed]]["accuracy"] for seed, run in runs.items() if seed in base]
        for row, runs in rows.items()
        if row != other
    }


def _head(recipe: Recipe) -> str:
    tuned = {"arms": "for every arm", "baselines": "for the baselines, whose values the methods take"}[recipe.tuned]
    chosen = (
        f"chosen {tuned} by held-out images with seeds {' '.join(map(str, recipe.tuning_seeds))}"
        if len(recipe.learning_rates) * len(recipe.weight_decays) > 1
        else "not tuned"
    )
    return (
        f"{recipe.network} on {recipe.data}, {recipe.images:,} training images of at most {recipe.size} x "
        f"{recipe.size} pixels, flips and crops; SGD, momentum {recipe.momentum}, batch {recipe.batch_size}, "
        f"{recipe.epochs} epochs (pruned networks {recipe.repair_epochs}), learning rate to 0 along half a cosine. "
        f"Learning rates {' '.join(f'{lr:g}' for lr in recipe.learning_rates)}, weight decays "
        f"{' '.join(f'{decay:g}' for decay in recipe.weight_decays)}: {chosen}. "
        "Accuracy: test images, last epoch, %, 95% intervals; p of paired t-tests by Holm's correction for "
        "those of the table.\n"
    )


def _table(table: Table, recipe: Recipe, results: Results, rows: dict[str, dict[int, Run]]) -> str:
    others = [other for other in (BASELINE, table.rival) if other in rows]
    pairs = {(row, other): values for other in others for row, values in differences(rows, other, results).items()}
    pairs.pop((BASELINE, table.rival), None)  # the other way round it is tested already
    compared = Comparisons(pairs)

    header = (
        *("arm", "learning rate", "weight decay", "accuracy", *(f"minus {other}" for other in others)),
        *("seeds", "inferior filters", "cost"),
    )

    def row(arm: str) -> list[str]:
        condition, source = table.rows[arm]
        candidates = grid(condition, recipe, results) if CONDITIONS[condition].wrong is None else []
        runs = rows[arm]
        if not runs:
            return [arm, *["-"] * (len(header) - 1)]
        found = [results[run] for run in runs.values()]
        any_run = next(iter(runs.values()))
        return [
            arm,
            _value(any_run.lr, [lr for lr, _ in candidates]),
            _value(any_run.weight_decay, [decay for _, decay in candidates]),
            with_interval([one["accuracy"] for one in found], 2),
            *(compared.cell((arm, other), 2) for other in others),
            str(len(runs)),
            f"{statistics.fmean(one['inferior'] for one in found):.0f} of {found[0]['filters']}",
            _cost(source, statistics.fmean(one["parameters"] for one in found)),
        ]

    condition = CONDITIONS[table.condition]
    return f"### {table.title}\n\n{condition.description[0].upper()}{condition.description[1:]}.\n\n" + markdown(
        header, map(row, table.rows)
    )


def _value(value: float, tried: Sequence[float]) -> str:
    edge = len(set(tried)) > 1 and value in (min(tried), max(tried))
    return f"{value:g}{' (edge)' if edge else ''}"


def _cost(arm: str, parameters: float) -> str:
    return f"{ARMS[arm].cost}x, {parameters / 1000:.0f}k parameters"
