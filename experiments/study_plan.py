"""What the study trains next."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from experiments.study_arms import ARMS, BASELINE
from experiments.study_settings import (
    CONDITIONS,
    Recipe,
    Results,
    Run,
    Table,
    base_run,
    chosen_values,
    tuning_runs,
)
from experiments.study_training import Place, Shape


def next_stack(
    chosen: Sequence[Table], recipe: Recipe, results: Results, place: Place, size: int, failed: Collection[Run] = ()
) -> list[Run]:
    """Runs of one shape that can be trained now, those that the first tables need first; empty: all is done.

    Args:
        chosen: the most important first.
        size: networks of a stack.
        failed: runs that are not to be tried again.
    """
    ready = [run for run in dict.fromkeys(_ready(chosen, recipe, results, place)) if run not in failed]
    stack: list[Run] = []
    networks = 0
    for run in ready:
        if Shape.of(run, recipe) == Shape.of(ready[0], recipe):
            networks += ARMS[run.arm].networks
            if stack and networks > size:
                break
            stack.append(run)
    return stack


def _ready(chosen: Sequence[Table], recipe: Recipe, results: Results, place: Place) -> list[Run]:
    runs: list[Run] = []
    for table in chosen:
        condition = CONDITIONS[table.condition]
        if condition.pruned or condition.wrong == "weight_decay":
            runs += [run for run in tuning_runs("healthy", BASELINE, recipe, results) if run not in results]
        if condition.pruned:
            bases = [base_run(recipe, results, seed) for seed in (*recipe.tuning_seeds, *recipe.seeds)]
            lost = [run for run in bases if run is not None and not place.state_file(run).exists()]
            runs += lost
            if lost or None in bases:
                continue
        for own_condition, arm in table.rows.values():
            runs += [run for run in tuning_runs(own_condition, arm, recipe, results) if run not in results]
        for own_condition, arm in table.rows.values():
            if (values := chosen_values(own_condition, arm, recipe, results)) is not None:
                reported = [Run(own_condition, arm, *values, seed) for seed in recipe.seeds]
                runs += [run for run in reported if run not in results]
    return runs
