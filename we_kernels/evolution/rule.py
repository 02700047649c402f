"""How filters are matched, as one value."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..runtime.layout import Segments


class MatchingRule(NamedTuple):
    """What `match_filters` is given beside the importances, checked and per group."""

    rates: Tensor
    """float64 [G] on the weights' device."""
    local_ratios: Sequence[float]
    """[G]; -1 stands for no local selection."""
    starvation: Tensor | None
    """int32 [G] on the weights' device, updated in place."""
    starvation_limit: float
    zero_is_inferior: Sequence[bool]
    """[G]."""

    @property
    def groups(self) -> int:
        """G."""
        return len(self.local_ratios)

    @property
    def table(self) -> tuple[float, ...]:
        """Ratios of all groups, then their flags: what a GPU reads of it, as one table."""
        return (*self.local_ratios, *map(float, self.zero_is_inferior))

    def new_selection(self, segments: Segments, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Memory for donors int32 [F], thresholds float32 [G] and numbers of inferior filters int32 [L]."""
        return (
            torch.empty(segments.num_filters, dtype=torch.int32, device=device),
            torch.empty(self.groups, dtype=torch.float32, device=device),
            torch.empty(segments.num_layers, dtype=torch.int32, device=device),
        )
