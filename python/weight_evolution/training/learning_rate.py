"""The learning rate of an epoch: a function of the epoch alone, so it needs no state."""

from __future__ import annotations

import math
from collections.abc import Sequence

LR_SCHEDULES = ("step", "cosine", "constant")
STEP_FRACTIONS = (0.3, 0.6, 0.9)
"""Of the epochs; 60, 120 and 180 of the published 200."""


def learning_rate(
    base: float,
    epoch: int,
    epochs: int,
    schedule: str,
    *,
    milestones: Sequence[int] | None = None,
    gamma: float = 0.1,
    warmup_epochs: int = 0,
) -> float:
    """The rate of ``epoch`` (from 0) out of ``epochs``; a linear warm-up multiplies the first epochs."""
    if schedule == "step":
        drops = step_milestones(epochs) if milestones is None else milestones
        rate = base * gamma ** sum(epoch >= drop for drop in drops)
    elif schedule == "cosine":
        rate = 0.5 * base * (1.0 + math.cos(math.pi * epoch / epochs))
    else:
        rate = base
    return rate * min(1.0, (epoch + 1) / (warmup_epochs + 1))


def step_milestones(epochs: int) -> list[int]:
    """The published drops, scaled to the number of epochs."""
    return [max(1, round(fraction * epochs)) for fraction in STEP_FRACTIONS]
