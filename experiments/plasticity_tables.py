"""The tables of the plasticity experiment."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence

from experiments.common import markdown
from experiments.journal import Result
from experiments.paired import Comparisons, with_interval
from experiments.plasticity_settings import SCORES, SETTINGS, Recipe, Run, chosen_lr, score
from experiments.rivals import BASELINE


def tables(names: Sequence[str], recipe: Recipe, results: Mapping[Run, Result]) -> Iterator[str]:
    """A table for each setting of which something is reported."""
    for name in names:
        rows = _reported(name, recipe, results)
        if any(rows.values()):
            yield _table(name, recipe, results, rows)
        else:
            yield f"{name}: nothing to report yet"


def _reported(name: str, recipe: Recipe, results: Mapping[Run, Result]) -> dict[str, dict[int, Run]]:
    """Arm -> seed -> run, of those that are done with the chosen learning rate."""
    setting = SETTINGS[name]
    rows: dict[str, dict[int, Run]] = {}
    for arm in setting.arms:
        tuning = setting.tuned_in or name
        tuned = [Run(tuning, arm, lr, seed) for lr in recipe.grid(setting) for seed in recipe.tuning_seeds]
        rows[arm] = {}
        if all(run in results for run in tuned):
            lr = chosen_lr(tuning, arm, recipe, results)
            runs = {seed: Run(name, arm, lr, seed) for seed in recipe.seeds}
            rows[arm] = {seed: run for seed, run in runs.items() if run in results}
    return rows


def _table(name: str, recipe: Recipe, results: Mapping[Run, Result], rows: Mapping[str, Mapping[int, Run]]) -> str:
    setting, grid = SETTINGS[name], recipe.grid(SETTINGS[name])
    scores = {arm: {seed: score(run, results) for seed, run in runs.items()} for arm, runs in rows.items()}

    def differences(arm: str, other: str) -> list[float]:
        return [scores[arm][seed] - scores[other][seed] for seed in scores[arm] if seed in scores[other]]

    pairs = {(arm, BASELINE): differences(arm, BASELINE) for arm in rows if arm != BASELINE}
    pairs |= {(setting.claim, arm): differences(setting.claim, arm) for arm in rows if arm != setting.claim}
    compared = Comparisons(pairs)

    def row(arm: str) -> list[str]:
        runs = [results[run] for run in rows[arm].values()]
        if not runs:
            return [arm, *["-"] * 6]
        lr = next(iter(rows[arm].values())).lr
        edge = " (edge)" if lr in (grid[0], grid[-1]) else ""
        dead, revived = ([run[key] for run in runs] for key in ("dead", "revived"))
        return [
            arm,
            f"{lr:g}{edge}",
            with_interval(list(scores[arm].values()), 1),
            f"{100 * statistics.fmean(dead):.0f}",
            f"{statistics.fmean(revived):.0f}",
            compared.cell((arm, BASELINE), 1),
            compared.cell((setting.claim, arm), 1),
        ]

    seeds = sorted({seed for runs in rows.values() for seed in runs})
    head = (
        f"{name}: {setting.description}; {recipe.data}, {recipe.length(setting)} tasks of at most {recipe.images} "
        f"images, {recipe.iterations} iterations of {recipe.batch_size} each. Score: {SCORES[setting.score]}, %. Seeds "
        f"{' '.join(map(str, seeds))}, 95% intervals; learning rates of {' '.join(f'{lr:g}' for lr in grid)}"
        f"{f', as chosen in {setting.tuned_in}' if setting.tuned_in else ''} by the mean score of seeds "
        f"{' '.join(map(str, recipe.tuning_seeds))}. p: paired t-tests, {len(compared)} of them, Holm's correction.\n\n"
    )
    header = (
        *("method", "learning rate", "score", "dead units %", "units revived"),
        *("minus baseline", f"{setting.claim}, minus this"),
    )
    return head + markdown(header, map(row, rows))
