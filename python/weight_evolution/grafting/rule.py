"""The options of a grafting, with the published defaults."""

from __future__ import annotations

from dataclasses import dataclass

from we_kernels import MAX_BINS
from we_kernels.checks import check_choice, check_fraction

from ..arguments import Checked, check_count, check_flag, check_not_negative, checked

LEVELS = ("layer", "filter")
CRITERIA = ("entropy", "filter-entropy", "l1")


def _check_bins(value: int, name: str) -> int:
    if (bins := check_count(value, name, at_least=1)) > MAX_BINS:
        raise ValueError(f"bins must be at most {MAX_BINS}, got {bins}")
    return bins


@dataclass(frozen=True)
class Rule(Checked):
    """What decides about coefficients, as `FilterGrafting` documents it."""

    strength: float = checked(0.4, check_fraction)
    sharpness: float = checked(500.0, check_not_negative)
    level: str = checked("layer", check_choice, LEVELS)
    criterion: str = checked("entropy", check_choice, CRITERIA)
    bins: int = checked(10, _check_bins)
    round_coefficient: bool = checked(False, check_flag)
