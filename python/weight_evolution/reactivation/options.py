"""The options of a unit reactivation."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from we_kernels.checks import check_choice, check_fraction

from ..arguments import Checked, check_count, check_flag, check_not_negative, check_share, checked, unless_none

SCALES = ("layer", "donor", "initial")
OUTGOING = ("zero", "keep")
IMPORTANCES = ("activity", "l1")
UTILITIES = ("contribution", "adaptation")


def _check_decay(value: float, name: str) -> float:
    if (decay := check_fraction(value, name)) == 1:
        raise ValueError("decay must be below 1, got 1.0")
    return decay


@dataclass(frozen=True)
class ReactivationOptions(Checked):
    """What decides about a step, as `UnitReactivation` documents it."""

    threshold: float = checked(0.1, check_not_negative)
    every: int = checked(100, check_count, 1)
    batches: int = checked(10, check_count, 1)
    scale: str = checked("layer", check_choice, SCALES)
    outgoing: str = checked("zero", check_choice, OUTGOING)
    importance: str = checked("activity", check_choice, IMPORTANCES)
    replacement_rate: float | None = checked(None, unless_none, check_share)
    maturity: int = checked(100, check_count)
    decay: float = checked(0.99, _check_decay)
    utility: str = checked("contribution", check_choice, UTILITIES)
    all_ranks: bool = checked(True, check_flag)
    seed: int = checked(0, check_count)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.replacement_rate is not None and self.importance != "activity":
            raise ValueError('replacement_rate goes by utility; it needs importance="activity"')

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, of all that changes results."""
        return {name: value for name, value in asdict(self).items() if name != "all_ranks"}
