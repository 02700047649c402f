"""How the share of filters that may be replaced changes over the epochs."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from ..arguments import check_count

Schedule = Callable[[float, int], float]
"""(base rate, epoch just trained, from 0) -> rate in [0, 1]."""


@dataclass(frozen=True)
class StagedSigmoid:
    """``base / divisors[stage] * sigmoid((epoch - start of the stage) / tau)``.

    Stages start at epoch 0 and at each milestone, where the learning rate drops. Source: Weight Evolution
    (arXiv 2110.04492), section 4.1, and its released program.

    Args:
        milestones: first epoch of every stage but the first, ascending.
        divisors: one positive number per stage, so one more than milestones.
        tau: epochs per unit of the sigmoid, positive.

    Raises:
        ValueError: names the argument that breaks these rules.
    """

    milestones: tuple[int, ...]
    divisors: tuple[float, ...]
    tau: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "milestones", tuple(self.milestones))
        object.__setattr__(self, "divisors", tuple(self.divisors))
        starts = (0, *self.milestones)
        if any(later <= earlier for earlier, later in pairwise(starts)):
            raise ValueError(f"milestones must be positive and ascending, got {self.milestones}")
        if len(self.divisors) != len(starts):
            raise ValueError(f"divisors must be one per stage ({len(starts)}), got {len(self.divisors)}")
        if not all(0 < divisor < math.inf for divisor in self.divisors):
            raise ValueError(f"divisors must be positive, got {self.divisors}")
        if not 0 < self.tau < math.inf:
            raise ValueError(f"tau must be positive, got {self.tau}")

    def __call__(self, base_rate: float, epoch: int) -> float:
        """The rate after ``epoch`` (from 0)."""
        stage = bisect_right(self.milestones, epoch)
        start = self.milestones[stage - 1] if stage else 0
        return base_rate / self.divisors[stage] / (1.0 + math.exp(-(epoch - start) / self.tau))

    def beyond(self, epochs: int) -> tuple[int, ...]:
        """The milestones that a run of so many epochs never reaches, without those that could not be earlier: a stage
        lasts an epoch at least.
        """
        return tuple(each for stage, each in enumerate(self.milestones, 1) if each >= epochs and each > stage)

    @classmethod
    def cifar(cls, epochs: int = 200) -> StagedSigmoid:
        """As published for CIFAR, 200 epochs, with the stages stretched or shortened to a run of ``epochs``.

        A step of another kind counts as well: for a run of 30,000 iterations ``epochs=30_000``, for steps that are
        told the iteration (``evolution.step(epoch=iteration)``).

        Raises:
            TypeError, ValueError: ``epochs`` is not an integer from 1.
        """
        return cls(milestones=(60, 120), divisors=(1.0, 2.5, 5.0), tau=15.0)._stretched(epochs, 200)

    @classmethod
    def imagenet(cls, epochs: int = 90) -> StagedSigmoid:
        """As published for ImageNet, 90 epochs; ``epochs`` as in `cifar`."""
        return cls(milestones=(30, 60), divisors=(1.0, 2.0, 4.0), tau=8.0)._stretched(epochs, 90)

    def _stretched(self, epochs: int, published: int) -> StagedSigmoid:
        epochs = check_count(epochs, "epochs", 1)
        milestones: list[int] = []
        for milestone in self.milestones:
            previous = milestones[-1] if milestones else 0
            milestones.append(max(previous + 1, round(milestone * epochs / published)))
        return StagedSigmoid(tuple(milestones), self.divisors, self.tau * epochs / published)
