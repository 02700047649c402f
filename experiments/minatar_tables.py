"""The tables of the MinAtar experiment."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from experiments.common import markdown
from experiments.journal import Result
from experiments.minatar_settings import ARMS, Part, Recipe
from experiments.paired import Comparisons, with_interval
from experiments.rivals import BASELINE, CLAIM

GAMES_AT_THE_END = 100
"""Whose mean return is that of a trained agent."""


def table(recipe: Recipe, results: Mapping[Part, Result], steps: int | None = None) -> str:
    """Of all runs that have so many steps; as many as all runs have, if None."""
    runs = {(part.arm, part.seed) for part in results}
    ends = {run: max(part.steps for part in results if (part.arm, part.seed) == run) for run in runs}
    if steps is None:
        steps = min(ends.values(), default=0)
    seeds = {arm: sorted(seed for own, seed in runs if own == arm and ends[own, seed] >= steps) for arm in ARMS}
    if not steps or not any(seeds.values()):
        return f"{recipe.game}: nothing to report yet"
    curves = {
        arm: {seed: [results[Part(arm, seed, end)] for end in _ends(recipe, steps)] for seed in own}
        for arm, own in seeds.items()
    }
    return _head(recipe, steps, seeds) + _rows(curves)


def _ends(recipe: Recipe, steps: int) -> range:
    return range(recipe.part, steps + 1, recipe.part)


def _head(recipe: Recipe, steps: int, seeds: Mapping[str, Sequence[int]]) -> str:
    everyone = sorted({seed for own in seeds.values() for seed in own})
    return (
        f"{recipe.game}: DQN, {steps:,} steps, {recipe.updates} updates of batch {recipe.batch_size} after each, "
        f"learning rate {recipe.lr:g} for all methods, not tuned. Return: mean of the last {GAMES_AT_THE_END} games; "
        f"area: mean return of the games of each {recipe.part:,} steps, mean over all of them. Dormant units: % of all "
        f"with at most that share of their layer's mean activation, at the end. Seeds {' '.join(map(str, everyone))}, "
        "95% intervals; p: paired t-tests, Holm's correction for all of the table.\n\n"
    )


def _rows(curves: Mapping[str, Mapping[int, Sequence[Result]]]) -> str:
    scores = {
        name: {arm: {seed: score(parts) for seed, parts in own.items()} for arm, own in curves.items()}
        for name, score in (("return", _last_return), ("area", _area))
    }

    def differences(name: str, arm: str, other: str) -> list[float]:
        mine, theirs = scores[name][arm], scores[name][other]
        return [mine[seed] - theirs[seed] for seed in mine if seed in theirs]

    against_baseline = {(name, arm, BASELINE) for name in scores for arm in ARMS if arm != BASELINE}
    of_claim = {("return", CLAIM, arm) for arm in ARMS if arm != CLAIM}
    compared = Comparisons({key: differences(*key) for key in sorted(against_baseline | of_claim)})

    def row(arm: str) -> list[str]:
        last = [parts[-1] for parts in curves[arm].values()]
        if not last:
            return [arm, *["-"] * 8]
        revived = [sum(part["revived"] for part in parts) for parts in curves[arm].values()]
        dormant = [[100 * part["dormant"][threshold] for part in last] for threshold in ("0.025", "0.1")]
        return [
            arm,
            *(with_interval(list(scores[name][arm].values()), 2) for name in scores),
            *(with_interval(shares, 1) for shares in dormant),
            f"{statistics.fmean(revived):.0f}",
            *(compared.cell((name, arm, BASELINE), 2) for name in scores),
            compared.cell(("return", CLAIM, arm), 2),
        ]

    header = (
        *("method", "return", "area", "dormant at 0.025", "dormant at 0.1", "units revived"),
        *("return minus baseline's", "area minus baseline's", f"return of {CLAIM}, minus this"),
    )
    return markdown(header, map(row, ARMS))


def _last_return(parts: Sequence[Result]) -> float:
    returns = [value for part in parts for value in part["returns"]][-GAMES_AT_THE_END:]
    return statistics.fmean(returns) if returns else 0.0


def _area(parts: Sequence[Result]) -> float:
    """A part in which no game ended counts as the one before."""
    curve = [0.0]
    for part in parts:
        curve.append(statistics.fmean(part["returns"]) if part["returns"] else curve[-1])
    return statistics.fmean(curve[1:])
