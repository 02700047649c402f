"""The crossovers of one rank, in copies of its weights, with donors that other ranks send."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import we_kernels as wk

from ..sharding.exchange import exchange
from ..sharding.placement import Placement
from .linear_biases import blended_bias
from .partial_filters import Norms, blend_rows_


@dataclass
class _Layer:
    """A weight of which filters are replaced on this rank. Of the rows of the copies the first are the rank's own."""

    position: int
    """In the bank."""
    filters: Tensor
    """[n, C, *kernel]: the rank's own, in place."""
    bias: Tensor | None
    replaced: Tensor
    """int64: rows of `filters`."""
    sources: Tensor
    """int64: the row of the copy that each gets; from n on, one that another rank sends."""
    sent: list[Tensor]
    """What other ranks send of their filters, and of their biases."""
    sent_biases: list[Tensor]

    def copy_of_filters(self) -> Tensor:
        """[n + m, C, *kernel], in the memory format of the filters."""
        filters = self.filters
        count = sum(map(len, self.sent))
        order = sorted(range(filters.dim()), key=filters.stride, reverse=True)
        shape = (len(filters) + count, *filters.shape[1:])
        copy = torch.empty_permuted(shape, order, dtype=filters.dtype, device=filters.device)
        copy[: len(filters)] = filters
        first = len(filters)
        for part in self.sent:
            # Of a donor's kernel only the largest element counts: one that has nothing else crosses over alike.
            copy[first : first + len(part)] = part.view(*part.shape, *[1] * (copy.dim() - part.dim()))
            first += len(part)
        return copy


class ShardedCrossover:
    """What the crossovers make of this rank's filters; the weights stay as they are until `write_`.

    Making it is one all-to-all, if any donor is on another rank than its inferior filter. An inferior kernel gets the
    donor's largest element, an inferior row all of the donor.

    Args:
        bank: this rank's parts of the weights.
        placement: where all filters are.
        donor: int32 [F] of all ranks, on the CPU.
        rule: of the crossover.
        biases: position of a Linear in the bank -> this rank's part of its bias.
        norms: position of a weight of partial filters in the bank -> those of the whole filters.
    """

    def __init__(
        self,
        bank: wk.FilterBank,
        placement: Placement,
        donor: Tensor,
        rule: str,
        biases: Mapping[int, Tensor],
        norms: Mapping[int, Norms],
    ) -> None:
        self._bank, self._blends, self._norms = bank, bank.blends, norms
        self._layers: list[_Layer] = []
        self._outgoing: list[list[Tensor]] = [[] for _ in range(placement.ranks)]
        self._expected: list[list[Tensor]] = [[] for _ in range(placement.ranks)]
        self._any_remote = False
        for position, donors in enumerate(donor.long().split(placement.sizes)):
            if bool((donors >= 0).any()):
                self._plan(position, donors, placement, biases.get(position))
        if self._any_remote:
            exchange(placement, self._outgoing, self._expected, bank.device)
        self._filters = [layer.copy_of_filters() for layer in self._layers]
        donors_here = [_donors(layer, len(copy)) for layer, copy in zip(self._layers, self._filters, strict=True)]
        self._biases = [
            self._crossed_bias(layer, copy, donors)
            for layer, copy, donors in zip(self._layers, self._filters, donors_here, strict=True)
        ]
        self._cross(donors_here, rule)

    def changes(self) -> list[tuple[int, Tensor, Tensor | None]]:
        """Positions of weights that change, in the bank, with the weight and the bias as they will be."""
        changes = []
        for layer, copy, bias in zip(self._layers, self._filters, self._biases, strict=True):
            own = copy[: len(layer.filters)]
            vector = self._bank.weights[layer.position].dim() == 1
            weight = own.squeeze(1) if vector else own.movedim(0, self._bank.filter_dims[layer.position])
            changes.append((layer.position, weight, None if bias is None else bias[: len(own)]))
        return changes

    def bank_after(self) -> wk.FilterBank:
        """The bank as it will be."""
        bank = self._bank
        weights = list(bank.weights)
        for position, weight, _ in self.changes():
            weights[position] = weight
        return wk.FilterBank(weights, bank.filter_dims, groups=bank.groups, names=bank.names)

    def write_(self) -> None:
        """Overwrite the replaced filters, and the elements of biases that go with them."""
        for layer, copy, bias in zip(self._layers, self._filters, self._biases, strict=True):
            layer.filters[layer.replaced] = copy[layer.replaced]
            if layer.bias is not None and bias is not None:
                layer.bias[layer.replaced] = bias[layer.replaced]

    def _plan(self, position: int, donors: Tensor, placement: Placement, bias: Tensor | None) -> None:
        """Which of a layer's donors go from and to this rank, and where."""
        bank, here = self._bank, placement.rank
        filters = bank.weights[position].movedim(bank.filter_dims[position], 0)
        filters = filters.unsqueeze(1) if filters.dim() == 1 else filters
        blend = self._blends[position]
        rows = (donors >= 0).nonzero().squeeze(1)
        sources = donors[rows]
        first, to, come_from = 0, torch.full_like(rows, here), torch.full_like(rows, here)
        if placement.sharded[position]:
            chunk = placement.chunks[position]
            first, to, come_from = here * chunk, rows // chunk, sources // chunk
        self._any_remote |= bool((to != come_from).any())
        for rank in to[(come_from == here) & (to != here)].unique().tolist():
            which = (sources[(come_from == here) & (to == rank)] - first).to(filters.device)
            self._outgoing[rank].append(_part_of(filters[which], blend))
            if bias is not None:
                self._outgoing[rank].append(bias[which])
        rows, sources, come_from = (part[to == here] for part in (rows, sources, come_from))
        if not len(rows):
            return
        layer = _Layer(position, filters, bias, (rows - first).to(filters.device), sources - first, [], [])
        place = len(filters)
        for rank in come_from[come_from != here].unique().tolist():
            which = come_from == rank
            count = int(which.sum())
            layer.sources[which] = torch.arange(place, place + count, device="cpu")
            place += count
            layer.sent.append(filters.new_empty(count, *(filters.shape[1:] if blend else filters.shape[1:2])))
            self._expected[rank].append(layer.sent[-1])
            if bias is not None:
                layer.sent_biases.append(bias.new_empty(count))
                self._expected[rank].append(layer.sent_biases[-1])
        self._layers.append(layer)

    def _cross(self, donors_here: Sequence[Tensor], rule: str) -> None:
        copies, donors, names = [], [], []
        for layer, copy, donor in zip(self._layers, self._filters, donors_here, strict=True):
            if self._blends[layer.position] and layer.position in self._norms:
                blend_rows_(copy, layer.replaced, layer.sources.to(copy.device), self._norms[layer.position].l1)
            else:
                copies.append(copy)
                donors.append(donor)
                names.append(self._bank.names[layer.position])
        if copies:
            wk.crossover_(wk.FilterBank(copies, names=names), torch.cat(donors), rule, validate=False)

    def _crossed_bias(self, layer: _Layer, filters: Tensor, donor: Tensor) -> Tensor | None:
        if layer.bias is None:
            return None
        known = self._norms.get(layer.position)
        importance = known.importance if known else wk.filter_importance(wk.FilterBank([filters]))
        return blended_bias(torch.cat([layer.bias, *layer.sent_biases]), importance, donor)


def _part_of(filters: Tensor, blend: bool) -> Tensor:
    """What a crossover needs of donors: [m, C, *kernel] for a blend, else [m, C], the kernels' largest elements."""
    if blend:
        return filters
    kernels = filters.flatten(2)
    return kernels.gather(-1, kernels.abs().argmax(-1, keepdim=True)).squeeze(-1)


def _donors(layer: _Layer, rows: int) -> Tensor:
    """int32 [rows]: for the copy of a layer's filters."""
    donor = torch.full((rows,), -1, dtype=torch.int32, device=layer.filters.device)
    donor[layer.replaced] = layer.sources.to(donor)
    return donor
