"""What the plasticity experiment trains: settings, the recipe of all runs, one run and its score."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace

from experiments.journal import Result
from experiments.rivals import ARMS, CLAIM, RELEASED, Arm


@dataclass(frozen=True)
class Setting:
    """A network, how it is trained, and what changes."""

    description: str
    labels: str
    """As of `Stream`."""
    network: str = "conv"
    optimizer: str = "Adam"
    tasks: float = 1.0
    """Times the recipe's."""
    tuned_in: str | None = None
    """Another setting, whose learning rates it takes."""
    larger_learning_rates: tuple[float, ...] = ()
    """Beyond those of the recipe, where methods chose the largest of them."""

    @property
    def score(self) -> str:
        """What of a run is compared."""
        return "held_out" if self.labels in ("noise", "true") else "online"

    @property
    def arms(self) -> dict[str, Arm]:
        """With SGD there are no ages; on Linears both rules of WeightEvolution are one."""
        arms = {name: arm for name, arm in ARMS.items() if self.network != "mlp" or name != RELEASED}
        if self.optimizer == "SGD":
            plain = {name: arm for name, arm in arms.items() if not name.endswith("own age")}
            return {name: replace(arm, own_age=False) for name, arm in plain.items()}
        return arms

    @property
    def claim(self) -> str:
        """The method that is compared with all others."""
        return CLAIM if CLAIM in self.arms else "reactivation"


SETTINGS = {
    "conv": Setting("conv net, random labels, Adam", "random"),
    "mlp": Setting("MLP, random labels, Adam", "random", "mlp"),
    "batchnorm": Setting("conv net with BatchNorm, random labels, Adam", "random", "conv-norm"),
    "sgd": Setting(
        "conv net, random labels, SGD with momentum 0.9", "random", optimizer="SGD", larger_learning_rates=(0.3,)
    ),
    "long": Setting("conv net, random labels, Adam, long", "random", tasks=2.5, tuned_in="conv"),
    "noise": Setting("MLP, true labels after random ones, Adam", "noise", "mlp", tasks=0.5),
    "pairs": Setting("MLP, pairs of classes, Adam", "pairs", "mlp", tasks=0.5, larger_learning_rates=(0.1,)),
    "stationary": Setting("MLP, true labels of the same images all the time, Adam", "true", "mlp", tasks=0.5),
}
SCORES = {
    "online": "accuracy of predictions before each step, mean over the second half of the tasks",
    "held_out": "accuracy on test images at the end of each task with true labels, mean over those of the second half",
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What every run depends on, beside its setting, method, learning rate and seed."""

    data: str
    images: int
    """Of a task, at most."""
    batch_size: int
    iterations: int
    """Of a task."""
    tasks: int
    adam_learning_rates: list[float]
    sgd_learning_rates: list[float]
    tuning_seeds: list[int]
    seeds: list[int]

    def grid(self, setting: Setting) -> list[float]:
        """The learning rates that every method is tuned on."""
        own = self.sgd_learning_rates if setting.optimizer == "SGD" else self.adam_learning_rates
        return [*own, *setting.larger_learning_rates]

    def length(self, setting: Setting) -> int:
        """Tasks of a run, at least two: the second half counts."""
        return max(2, round(self.tasks * setting.tasks))


@dataclass(frozen=True)
class Run:
    """One network to train."""

    setting: str
    arm: str
    lr: float
    seed: int


def chosen_lr(tuning: str, arm: str, recipe: Recipe, results: Mapping[Run, Result]) -> float:
    """That of the best mean score over the tuning seeds."""

    def mean(lr: float) -> float:
        return statistics.fmean(score(Run(tuning, arm, lr, seed), results) for seed in recipe.tuning_seeds)

    return max(recipe.grid(SETTINGS[tuning]), key=mean)


def score(run: Run, results: Mapping[Run, Result]) -> float:
    """Percent; what it is says `Setting.score`."""
    values = results[run][SETTINGS[run.setting].score]
    late = values[len(values) // 2 :]
    return 100 * statistics.fmean(value for value in late if value is not None)
