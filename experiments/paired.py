"""Intervals of means, paired tests, and Holm's correction for their number."""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from weight_evolution.training import UserError

Key = TypeVar("Key", bound=Hashable)


def half_width(values: Sequence[float], level: float = 0.95) -> float:
    """Of the interval of the mean of at least two values, by Student's t."""
    quantile = float(_student().ppf((1 + level) / 2, len(values) - 1))
    return quantile * statistics.stdev(values) / math.sqrt(len(values))


def paired_p_value(differences: Sequence[float]) -> float:
    """Of the two-sided paired t-test that the mean of at least two differences is 0; 1 if all are 0."""
    mean, deviation = statistics.fmean(differences), statistics.stdev(differences)
    if deviation == 0:
        return float(mean == 0)
    t = abs(mean) / deviation * math.sqrt(len(differences))
    return 2 * float(_student().sf(t, len(differences) - 1))


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """Adjusted p-values: significant at a level if at most that. Source: Holm, Scand. J. Statist. 6 (1979)."""
    adjusted: dict[Key, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min(1.0, p_values[name] * (len(p_values) - rank)))
        adjusted[name] = largest
    return adjusted


def with_interval(values: Sequence[float], digits: int, sign: str = "") -> str:
    """The mean as tables write it, with its 95% interval if there are two values; ``sign``: "+" to show it always."""
    spread = f" +- {half_width(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{sign}.{digits}f}{spread}"


class Comparisons(Generic[Key]):
    """All paired tests of a table, corrected for their number.

    Args:
        differences: by a key of the caller's, between two methods, seed by seed; less than two are not tested.
    """

    def __init__(self, differences: Mapping[Key, Sequence[float]]) -> None:
        self._differences = {key: values for key, values in differences.items() if len(values) > 1}
        self._adjusted = holm({key: paired_p_value(values) for key, values in self._differences.items()})

    def __len__(self) -> int:
        return len(self._differences)

    def cell(self, key: Key, digits: int) -> str:
        """The mean difference, its interval and p; "-" if it was not tested."""
        if key not in self._differences:
            return "-"
        p = self._adjusted[key]
        shown = "< 0.001" if p < 0.001 else f"{p:.3f}"
        return f"{with_interval(self._differences[key], digits, '+')} (p {shown})"


def _student() -> Any:
    try:
        from scipy.stats import t
    except ImportError:
        raise UserError("the table needs SciPy, which scikit-learn brings: pip install '.[train]'") from None
    return t
