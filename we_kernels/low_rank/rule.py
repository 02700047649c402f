"""How weights are projected, as one value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class ProjectionRule(NamedTuple):
    """What `project_low_rank_` is given beside the weights, checked and per layer."""

    ranks: Sequence[int]
    row_scales: Sequence[Tensor | None]
    energy_transfer: bool
    skip_below: float
