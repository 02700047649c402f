"""The options of a grafting, with the published defaults."""

from __future__ import annotations

from dataclasses import dataclass

from we_kernels import MAX_BINS
from we_kernels.checks import check_choice, check_fraction

from ..arguments import check_count, check_flag, check_not_negative

LEVELS = ("layer", "filter")
CRITERIA = ("entropy", "filter-entropy", "l1")


@dataclass(frozen=True)
class Rule:
    """What decides about coefficients, as `FilterGrafting` documents it.

    Raises:
        TypeError, ValueError: name the option and say what it must be.
    """

    strength: float = 0.4
    sharpness: float = 500.0
    level: str = "layer"
    criterion: str = "entropy"
    bins: int = 10
    round_coefficient: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "strength", check_fraction(self.strength, "strength"))
        object.__setattr__(self, "sharpness", check_not_negative(self.sharpness, "sharpness"))
        check_choice(self.level, "level", LEVELS)
        check_choice(self.criterion, "criterion", CRITERIA)
        object.__setattr__(self, "bins", check_count(self.bins, "bins", at_least=1))
        if self.bins > MAX_BINS:
            raise ValueError(f"bins must be at most {MAX_BINS}, got {self.bins}")
        check_flag(self.round_coefficient, "round_coefficient")
