"""Means over seeds with 95% intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from .runs import Run

# Two-sided 95% points of Student's t, by degrees of freedom.
_T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def half_width(values: Sequence[float]) -> float:
    """Half of the 95% interval of their mean (Student's t); at least two values."""
    deviation: float = statistics.stdev(values)
    return _T95.get(len(values) - 1, 2.26) * deviation / math.sqrt(len(values))


def with_interval(values: Sequence[float], digits: int) -> str:
    """The mean, and for several values half of its interval."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} +- {half_width(values):.{digits}f}" if len(values) > 1 else mean


def comparison(runs: Sequence[Run], method: str, against: str, value: Callable[[Run], float]) -> str:
    """In words, what the method has more than another of ``value``, in points, paired by seed, with its interval."""
    other = {run.seed: value(run) for run in runs if run.method == against}
    gaps = [value(run) - other[run.seed] for run in runs if run.method == method]
    mean = statistics.fmean(gaps)
    text = f"{method}: {mean:+.2f} points against {against}"
    if len(gaps) < 2:
        return f"{text}; one seed says nothing about the noise"
    half = half_width(gaps)
    verdict = "no difference beyond the noise" if abs(mean) <= half else "beyond the noise of these seeds"
    return f"{text} (95% interval {mean - half:+.2f} to {mean + half:+.2f}, {len(gaps)} paired seeds): {verdict}"
