"""BatchNorm shifts that evolve only where their channel's filter does."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

import we_kernels as wk

from ..model.outputs import convolutions_before
from ..model.targets import Targets
from ..model.tracing import NotTracedError, trace
from ..model.wrappers import joined, named_modules


class InferiorShifts:
    """Takes back the donors of shifts whose channel's filter has none.

    Args:
        model: traced to find the convolution before each BatchNorm; a shift without one does not evolve.
        targets: the parameters of the model that take part.

    Raises:
        ValueError: the model cannot be traced.
    """

    def __init__(self, model: nn.Module, targets: Targets) -> None:
        modules = dict(named_modules(model))
        try:
            before = convolutions_before(trace(model), modules)
        except NotTracedError as error:
            raise ValueError(
                'norm_shift_rate="inferior" needs to know which convolution each BatchNorm follows, and the model '
                f"cannot be traced ({error}); pass a rate, or 0"
            ) from None
        self._targets = targets
        self._convolution = _positions(targets, before)
        self._made_for: wk.FilterBank | None = None
        self._filter = self._layer = self._restricted = torch.empty(0, dtype=torch.int64, device="cpu")

    def restrict(self, bank: wk.FilterBank, selection: wk.Selection) -> wk.Selection:
        """The selection without those donors; a restricted layer's inferior filters are those with a donor."""
        if self._made_for is not bank:
            self._fill_tables(bank)
        donor = selection.donor
        kept = torch.where((self._filter >= 0) & (donor[self._filter.clamp(min=0)] >= 0), donor, -1)
        matched = torch.zeros_like(selection.inferior).index_add_(0, self._layer, (kept >= 0).int())
        inferior = torch.where(self._restricted, matched, selection.inferior)
        return selection._replace(donor=kept, inferior=inferior)

    def _fill_tables(self, bank: wk.FilterBank) -> None:
        """Of each filter the one that decides about it (of others than shifts, itself; -1: never), and its layer."""
        parts = []
        for position, own in enumerate(bank.split(torch.arange(bank.num_filters, device="cpu"))):
            source = self._convolution.get(position, position)
            first = 0 if source is None else sum(bank.sizes[:source])
            fits = source is not None and bank.sizes[source] == len(own)
            parts.append(torch.arange(first, first + len(own), device="cpu") if fits else torch.full_like(own, -1))
        self._filter = torch.cat(parts).to(bank.device)
        sizes = torch.tensor(bank.sizes, device="cpu")
        self._layer = torch.arange(len(bank), device="cpu").repeat_interleave(sizes).to(bank.device)
        restricted = [layer in self._convolution for layer in range(len(bank))]
        self._restricted = torch.tensor(restricted, device="cpu").to(bank.device)
        self._made_for = bank

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_made_for": None}


def _positions(targets: Targets, before: Mapping[str, str]) -> dict[int, int | None]:
    """Position of each shift among the targets -> that of its convolution, None if that does not take part."""
    position = {target.name: i for i, target in enumerate(targets.items)}
    found: dict[int, int | None] = {}
    for i, target in enumerate(targets.items):
        if target.kind == "norm_shift":
            norm = target.name.rpartition(".")[0]
            found[i] = position.get(joined(before[norm], "weight")) if norm in before else None
    return found
