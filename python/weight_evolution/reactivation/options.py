"""The options of a unit reactivation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from we_kernels.checks import check_choice, check_fraction

from ..arguments import check_count, check_flag, check_not_negative, check_share

SCALES = ("layer", "donor", "initial")
OUTGOING = ("zero", "keep")
IMPORTANCES = ("activity", "l1")
UTILITIES = ("contribution", "adaptation")


@dataclass(frozen=True)
class ReactivationOptions:
    """What decides about a step, as `UnitReactivation` documents it.

    Raises:
        TypeError, ValueError: name the option and say what it must be.
    """

    threshold: float = 0.1
    every: int = 100
    batches: int = 10
    scale: str = "layer"
    outgoing: str = "zero"
    importance: str = "activity"
    replacement_rate: float | None = None
    maturity: int = 100
    decay: float = 0.99
    utility: str = "contribution"
    all_ranks: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_not_negative(self.threshold, "threshold")
        check_count(self.every, "every", 1)
        check_count(self.batches, "batches", 1)
        check_choice(self.scale, "scale", SCALES)
        check_choice(self.outgoing, "outgoing", OUTGOING)
        check_choice(self.importance, "importance", IMPORTANCES)
        if self.replacement_rate is not None:
            check_share(self.replacement_rate, "replacement_rate")
            if self.importance != "activity":
                raise ValueError('replacement_rate goes by utility; it needs importance="activity"')
        check_count(self.maturity, "maturity")
        if check_fraction(self.decay, "decay") == 1:
            raise ValueError("decay must be below 1, got 1.0")
        check_choice(self.utility, "utility", UTILITIES)
        check_flag(self.all_ranks, "all_ranks")
        check_count(self.seed, "seed")

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, of all that changes results."""
        return {name: value for name, value in asdict(self).items() if name != "all_ranks"}
