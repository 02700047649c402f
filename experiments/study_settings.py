"""What the study trains: conditions, tables of arms, the recipe of all runs, and which values an arm takes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace

from experiments.journal import Result
from experiments.study_arms import ARMS, BASELINE, NORMS_UNDECAYED


@dataclass(frozen=True)
class Condition:
    """How networks are trained, whatever is done about it."""

    description: str
    wrong: str | None = None
    """ "lr": the recipe's too large one, with the published weight decay; "weight_decay": the recipe's too large one,
    with the learning rate of "healthy"; None: both are tuned."""
    noisy: bool = False
    """Labels, by the recipe's share."""
    width: float = 1.0
    pruned: bool = False
    """Starts from a trained network, half of whose filters are dead, instead of fresh weights."""


CONDITIONS = {
    "healthy": Condition("learning rate and weight decay tuned"),
    "pruned": Condition("a trained network of which half of the filters are exactly dead, trained on", pruned=True),
    "large-lr": Condition("the learning rate is too large", wrong="lr"),
    "large-decay": Condition("the weight decay is too large", wrong="weight_decay"),
    "noise": Condition("some of the training images have a random label", noisy=True),
    "wide": Condition("twice as many filters in every layer", width=2.0),
}


@dataclass(frozen=True)
class Table:
    """Arms of a condition that are compared with its baseline, and with a rival."""

    title: str
    condition: str
    arms: tuple[str, ...]
    rival: str
    """What one would do without the method."""
    main: tuple[str, ...] = ()
    """The arms that are trained where there is time for few: what the advice rests on; all when left out."""
    remedy: bool = False
    """Whether the healthy baseline of the same seeds is a row, too: what is wrong here put right."""

    def shortened(self) -> Table:
        """With the main arms only."""
        return replace(self, arms=self.main or self.arms)

    @property
    def rows(self) -> dict[str, tuple[str, str]]:
        """Name -> condition and arm."""
        remedies = {TUNED: ("healthy", BASELINE)} if self.remedy else {}
        return {arm: (self.condition, arm) for arm in self.arms} | remedies


TUNED = "baseline, learning rate and weight decay tuned"
_EVOLUTION = (
    *("weight evolution, paper rule", "weight evolution, released rule"),
    *("weight evolution, every 20 iterations", "weight evolution, every 20 iterations, no shifts"),
)
_REACTIVATION = ("reactivation by activity", "reactivation by L1")
_USUAL = (BASELINE, NORMS_UNDECAYED, "average of weights", *_EVOLUTION, *_REACTIVATION)
_TOO_LARGE = _USUAL, NORMS_UNDECAYED, (BASELINE, NORMS_UNDECAYED, _EVOLUTION[2])
"""Arms, rival and main arms where a setting is."""
TABLES = {
    "repair": Table(
        "Half of the filters dead",
        "pruned",
        (
            *(BASELINE, "weight evolution, paper rule", "weight evolution, rate 0.6, once"),
            *("weight evolution, rate 0.6, every 20 iterations", "random new filters, once", *_REACTIVATION),
            *("rate 0.6 once, then reactivation by activity", "not pruned"),
        ),
        "random new filters, once",
        (
            *(BASELINE, "weight evolution, rate 0.6, once", "random new filters, once", _REACTIVATION[0]),
            "not pruned",
        ),
    ),
    "large-lr": Table("Learning rate too large", "large-lr", *_TOO_LARGE, remedy=True),
    "healthy": Table(
        "Healthy and tuned",
        "healthy",
        (*_USUAL, "weight evolution, rate 0.6"),
        NORMS_UNDECAYED,
        (BASELINE, NORMS_UNDECAYED, _EVOLUTION[0], _REACTIVATION[0]),
    ),
    "two": Table(
        "Two networks",
        "healthy",
        (BASELINE, "grafting", "plain averaging", "one network, twice as long"),
        "one network, twice as long",
        (BASELINE, "grafting", "one network, twice as long"),
    ),
    "asynchronous": Table(
        "Asynchronous update",
        "healthy",
        (BASELINE, "asynchronous, rate 0.5", "half the rate"),
        "half the rate",
    ),
    "low-rank": Table(
        "A compact network",
        "healthy",
        (
            *("truncated, then fine-tuned", "low-rank projection", "low-rank projection, every 250 iterations"),
            *("narrower network", BASELINE),
        ),
        "truncated, then fine-tuned",
        ("truncated, then fine-tuned", "low-rank projection", "narrower network", BASELINE),
    ),
    "noise": Table(
        "Label noise",
        "noise",
        (BASELINE, NORMS_UNDECAYED, "average of weights", _EVOLUTION[0], *_REACTIVATION),
        "average of weights",
        (BASELINE, "average of weights", _EVOLUTION[0]),
    ),
    "large-decay": Table("Weight decay too large", "large-decay", *_TOO_LARGE, remedy=True),
    "wide": Table(
        "Over-wide",
        "wide",
        (BASELINE, NORMS_UNDECAYED, _EVOLUTION[0], _EVOLUTION[3], *_REACTIVATION),
        NORMS_UNDECAYED,
        (BASELINE, _EVOLUTION[0]),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What every run depends on, beside its condition, arm, learning rate, weight decay and seed."""

    data: str
    size: int
    """Larger images are averaged down to so many pixels a side."""
    images: int
    network: str
    batch_size: int
    epochs: int
    repair_epochs: int
    momentum: float
    large_lr: float
    published_weight_decay: float
    large_weight_decay: float
    label_noise: float
    learning_rates: list[float]
    weight_decays: list[float]
    tuned: str
    """ "arms": each by itself; "baselines": only those, the others take their values."""
    tuning_seeds: list[int]
    seeds: list[int]


@dataclass(frozen=True)
class Run:
    """One network to train, or two."""

    condition: str
    arm: str
    lr: float
    weight_decay: float
    seed: int


Results = Mapping[Run, Result]
Values = tuple[float, float]
"""Learning rate and weight decay."""


def base_run(recipe: Recipe, results: Results, seed: int) -> Run | None:
    """The healthy baseline of a seed, which a pruned network comes from; None: it is not tuned yet."""
    chosen = chosen_values("healthy", BASELINE, recipe, results)
    return None if chosen is None else Run("healthy", BASELINE, *chosen, seed)


def chosen_values(condition: str, arm: str, recipe: Recipe, results: Results) -> Values | None:
    """Those of the best mean accuracy on held-out images over the tuning seeds; None: not known yet."""
    setting = CONDITIONS[condition]
    if setting.wrong == "lr":
        return recipe.large_lr, recipe.published_weight_decay
    if setting.wrong == "weight_decay":
        base = chosen_values("healthy", BASELINE, recipe, results)
        return None if base is None else (base[0], recipe.large_weight_decay)
    source = _tuned_as(arm, recipe)
    candidates = grid(condition, recipe, results)
    if len(candidates) <= 1:
        return candidates[0] if candidates else None
    means: dict[Values, float] = {}
    for values in candidates:
        runs = [Run(condition, source, *values, seed) for seed in recipe.tuning_seeds]
        if any(run not in results for run in runs):
            return None
        means[values] = statistics.fmean(results[run]["accuracy"] for run in runs)
    return max(means, key=means.__getitem__)


def tuning_runs(condition: str, arm: str, recipe: Recipe, results: Results) -> list[Run]:
    """What has to be known before the arm's values are chosen; where there is no choice, nothing."""
    candidates = grid(condition, recipe, results)
    if CONDITIONS[condition].wrong is not None or len(candidates) == 1:
        return []
    source = _tuned_as(arm, recipe)
    return [Run(condition, source, *values, seed) for seed in recipe.tuning_seeds for values in candidates]


def grid(condition: str, recipe: Recipe, results: Results) -> list[Values]:
    """What every arm of the condition is tuned on; empty: not known yet.

    A pruned network keeps the weight decay that it was trained with.
    """
    decays = recipe.weight_decays
    if CONDITIONS[condition].pruned:
        base = chosen_values("healthy", BASELINE, recipe, results)
        decays = [] if base is None else [base[1]]
    return [(lr, decay) for lr in recipe.learning_rates for decay in decays]


def _tuned_as(arm: str, recipe: Recipe) -> str:
    if recipe.tuned == "arms" or arm == BASELINE or not ARMS[arm].decays_norms:
        return arm
    return BASELINE
