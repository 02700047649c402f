"""Intervals of means, paired tests, and Holm's correction for their number."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from weight_evolution.training import UserError


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


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjusted p-values: significant at a level if at most that. Source: Holm, Scand. J. Statist. 6 (1979)."""
    adjusted, largest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min(1.0, p_values[name] * (len(p_values) - rank)))
        adjusted[name] = largest
    return adjusted


def _student() -> Any:
    try:
        from scipy.stats import t
    except ImportError:
        raise UserError(
            "the table needs SciPy, which scikit-learn brings: pip install 'weight-evolution[train]'"
        ) from None
    return t
