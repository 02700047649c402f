"""What becomes of an optimizer's memory of weights that are spread over ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .optimizer_state import Entry, OptimizerState, entries_of, fresh
from .writing import overwrite_

_SUMS = 6


class ShardedState:
    """`StateUpdate` where each rank has a part: sums of parts go to all ranks, then each writes its own.

    Sums run in float64, in the order of the ranks: a mean that "fill" writes is that of one process up to rounding. All
    else is equal to it, bit for bit.

    Args:
        state: the optimizer, and what is to become of its state.
        parameters: those that the step may change.
        moments: False: all but what `moments_of` finds.
    """

    def __init__(self, state: OptimizerState, parameters: Sequence[Tensor], *, moments: bool = True) -> None:
        wanted = set(map(id, parameters))
        self._choice = state.choice
        self._entries = [
            entry
            for entry in entries_of(state.optimizer)
            if id(entry.owner) in wanted
            and (state.choice != "keep" or not entry.is_known)
            and (moments or not entry.is_moment)
        ]
        self.size = 2 * _SUMS * len(self._entries)
        """float32 numbers that `sums` gives, on every rank."""
        self._after: Mapping[int, Tensor] = {}

    def sums(self, after: Mapping[int, Tensor]) -> Tensor:
        """float32 [size]: of this rank's parts, before anything is written.

        Args:
            after: identity of a parameter -> what this rank's part of it will be; those that change only.
        """
        self._after = after
        if not self._entries:
            return torch.empty(0, dtype=torch.float32, device="cpu")
        sums = torch.stack([_sums(entry, self._changed(entry)) for entry in self._entries])
        high = sums.float()
        return torch.stack([high, (sums - high).float()], dim=-1).flatten()

    def write_(self, sums: Tensor) -> None:
        """Change the state of every element that will change; call it before the weights are written.

        Args:
            sums: float32 [ranks, size].
        """
        if not self._entries:
            return
        of_ranks = sums.view(len(sums), len(self._entries), _SUMS, 2).double().sum(-1)
        for i, entry in enumerate(self._entries):
            # Of a parameter that every rank has, the first rank speaks.
            spread = entry.parameter.numel() != entry.owner.numel()
            total = of_ranks[:, i].sum(0) if spread else of_ranks[0, i]
            if id(entry.owner) in self._after:
                new = self._new(entry, total).to(entry.value)
                overwrite_(entry.value, torch.where(self._changed(entry), new, entry.value))

    def _changed(self, entry: Entry) -> Tensor:
        after = self._after.get(id(entry.owner))
        return torch.zeros_like(entry.parameter, dtype=torch.bool) if after is None else after != entry.parameter

    def _new(self, entry: Entry, total: Tensor) -> Tensor:
        """Of changed elements."""
        after = self._after[id(entry.owner)]
        others, sum_of_others, sum_of_all, negative, distance, norm = total.unbind()
        if entry.is_average:
            return after
        if self._choice == "keep":
            other = entry.value
        elif self._choice == "reset":
            other = fresh(entry)
        else:
            mean = torch.where(others > 0, sum_of_others / others, sum_of_all / entry.owner.numel())
            magnitude = negative == 0 if not entry.is_known else torch.full_like(negative, entry.is_magnitude)
            other = torch.where(magnitude.bool(), mean, 0)
        if entry.is_known:
            return other
        return torch.where(distance * 4 < norm, after.to(entry.value), other.to(entry.value))


def _sums(entry: Entry, changed: Tensor) -> Tensor:
    """float64 [6]: of other elements their number and sum, the sum of all, how many are negative; squared distance from
    the weight, and its squared norm.
    """
    value, weight = entry.value.double(), entry.parameter.double()
    others = ~changed & value.isfinite()
    return torch.stack(
        [
            others.sum().double(),
            torch.where(others, value, 0).sum(),
            value.sum(),
            (value < 0).sum().double(),
            (value - weight).square().sum(),
            weight.square().sum(),
        ]
    )
