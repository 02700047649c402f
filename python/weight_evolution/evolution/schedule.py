"""How the share of filters that may be replaced changes over the epochs."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

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

    @classmethod
    def cifar(cls) -> StagedSigmoid:
        """As published for CIFAR, 200 epochs."""
        return cls(milestones=(60, 120), divisors=(1.0, 2.5, 5.0), tau=15.0)

    @classmethod
    def imagenet(cls) -> StagedSigmoid:
        """As published for ImageNet, 90 epochs."""
        return cls(milestones=(30, 60), divisors=(1.0, 2.0, 4.0), tau=8.0)
