"""A network that is spread over ranks: each blends its part, and all know what one process would."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

import we_kernels as wk
from we_kernels.grafting.operators import entropy_of_counts
from we_kernels.grafting.spread import part_counts, part_ranges

from ..measures.invalid_filters import PUBLISHED_THRESHOLDS
from ..sharding.local_part import is_distributed, local_part
from ..sharding.rows import Rows, rows_held
from .network import Choice, Information, Network, local_weights, of_filters, of_layers
from .parts import find_parts
from .rule import Rule

if TYPE_CHECKING:
    from .exchange import Exchange

N = TypeVar("N", bound="ShardedNetwork")


class ShardedNetwork(Network):
    """A network whose parameters are DTensors on one mesh, of which the ranks hold all of it (docs/scaling.md).

    All-reduces give every rank the information of every network. They add counts of bins, and numbers
    of filters or BatchNorm scales, which the first rank that holds one gives and all others leave 0, so they are exact.
    """

    mesh: Any = None
    """The DeviceMesh; as long as the network lives the same."""

    @property
    def first_sharded(self) -> str:
        """The name of a tensor that is a DTensor."""
        return next(name for name, tensor in self.named_tensors() if is_distributed(tensor))

    @property
    def own_convs(self) -> Mapping[str, _ConvNd]:
        """Convolutions of whose filters here this rank is the first."""
        return {name: conv for name, conv in self.parts.convs.items() if self._convs[name].first_copy}

    def of_all(self: N, here: Sequence[N], exchange: Exchange, rule: Rule) -> list[Information]:
        """The information of every network of an exchange, of which those ``here`` are this rank's; collective."""
        ends: Sequence[Tensor | None] = [None] * len(here)
        if rule.criterion == "entropy":
            every = exchange.reduce(
                lambda: [network._ends() for network in here],
                2 * len(self.parts.convs),
                dist.ReduceOp.MAX,
                self.device,
                "exchanging ranges",
            )
            ends = list(every[exchange.own])
        numbers = exchange.reduce(
            lambda: [network._numbers(rule, own) for network, own in zip(here, ends, strict=True)],
            sum(self._sizes(rule)),
            dist.ReduceOp.SUM,
            self.device,
            "exchanging entropies",
        )
        return [self._information(rule, row) for row in numbers]

    def total(self, exchange: Exchange, counts: Sequence[Mapping[int, tuple[int, ...]]]) -> list[tuple[int, ...]]:
        """What was counted of each network, of what each rank has counted of its own, by their numbers."""
        return [
            tuple(map(sum, zip(*(counts[rank][i] for rank in ranks), strict=True)))
            for i, ranks in enumerate(exchange.members)
        ]

    def vector(self, coefficients: Mapping[str, Tensor], bank: wk.FilterBank) -> Tensor:
        """The coefficients of the filters that this rank holds; see `Network.vector`."""
        held = {name: c[self._parts[name].range] for name, c in coefficients.items() if c.dim() and name in self._parts}
        return super().vector({**coefficients, **held}, bank)

    def _locate(self) -> None:
        self._check_mesh()
        self._convs = {name: self._filters_held(name, conv) for name, conv in self.parts.convs.items()}
        self._parts = {
            part.name: rows_held(part.name, part.whole, part.filters(part.tensor)[1])
            for part in self.parts.items
            if is_distributed(part.whole)
        }
        self._scales = {name: self._counted(scale, rows_held(name, scale, 0)) for name, scale in self.scales().items()}

    def _check_mesh(self) -> None:
        spread: list[tuple[str, Any]] = [(name, t) for name, t in self.named_tensors() if is_distributed(t)]
        if not spread:
            raise TypeError("no parameter is a DTensor any more; make a new FilterGrafting for the model")
        if self.mesh is None:
            self.mesh = spread[0][1].device_mesh
            if self.mesh.get_coordinate() is None:
                raise ValueError(
                    f"{spread[0][0]} is sharded over {self.mesh}, which is without this rank; make FilterGrafting on "
                    "its ranks only"
                )
        for name, tensor in spread:
            if tensor.device_mesh != self.mesh:
                raise ValueError(
                    f"{name} is sharded over {tensor.device_mesh}, other parameters over {self.mesh}; give fully_shard "
                    "one mesh for all of a network, and make a new FilterGrafting when that changes"
                )

    def _filters_held(self, name: str, conv: _ConvNd) -> Rows:
        if not is_distributed(conv.weight):
            return self._counted(conv.weight, Rows(0, conv.out_channels, True))
        if conv.transposed and conv.groups > 1:
            raise TypeError(
                f"{name} is a DTensor, a transposed convolution with groups, whose shards need not be whole groups; "
                f"keep it whole (ignored_params= of fully_shard) or pass exclude=[{name!r}]"
            )
        return rows_held(name, conv.weight, int(conv.transposed), whole=True)

    def _counted(self, tensor: Tensor, rows: Rows) -> Rows:
        """What every rank has as a whole is counted by the first."""
        return rows if is_distributed(tensor) else rows._replace(first_copy=not any(self.mesh.get_coordinate()))

    def _sizes(self, rule: Rule) -> list[int]:
        """Of the three sections of `_numbers`."""
        filters = self.filters_by_name().values()
        information = len(filters) * rule.bins if rule.criterion == "entropy" else sum(filters)
        scales = sum(scale.numel() for scale in self.scales().values())
        return [information, scales, len(PUBLISHED_THRESHOLDS)]

    def _ends(self) -> Tensor:
        """float64 [2 L]: negative minimum and maximum of each convolution's elements here."""
        ends = torch.full((len(self._convs), 2), -torch.inf, dtype=torch.float64, device="cpu")
        low, high = part_ranges(self._own_bank()).cpu().unbind(1)
        ends[self._own_places()] = torch.stack([-low, high], 1)
        return ends.flatten()

    def _numbers(self, rule: Rule, ends: Tensor | None) -> Tensor:
        """float64: counts of the bins or information of each filter, scales, and invalid filters; 0 if not here."""
        sizes = self._sizes(rule)
        numbers = torch.zeros(sum(sizes), dtype=torch.float64, device="cpu")
        information, scales, invalid = numbers.split(sizes)
        if ends is not None:
            bank, places = self._own_bank(), self._own_places()
            low, high = ends.view(-1, 2)[places].to(bank.device).unbind(1)
            counts = part_counts(bank, torch.stack([-low, high], 1), rule.bins)
            information.view(-1, rule.bins)[places] = counts.cpu().double()
        else:
            held = [rows.number for rows in self._convs.values() if rows.first_copy]
            own = of_filters(local_weights(self.own_convs), rule).split(held)
            _place(information, self.filters_by_name().values(), self._convs.values(), own)
        every = {name: local_part(scale.detach()) for name, scale in self.scales().items()}
        own = [scale.double().cpu() for name, scale in every.items() if self._scales[name].first_copy]
        _place(scales, [scale.numel() for scale in self.scales().values()], self._scales.values(), own)
        invalid += torch.tensor(self.invalid(), dtype=torch.float64, device="cpu")
        return numbers

    def _information(self, rule: Rule, numbers: Tensor) -> Information:
        """What the `_numbers` of all ranks of a network say together."""
        information, scales, invalid = numbers.split(self._sizes(rule))
        if rule.criterion == "entropy":
            elements = [max(conv.weight.numel(), 1) for conv in self.parts.convs.values()]
            whole = torch.tensor(elements, dtype=torch.float64, device="cpu")
            layers = entropy_of_counts(information.view(-1, rule.bins), whole).double()
        else:
            layers = of_layers(information, list(self.filters_by_name().values()), rule)
        return Information(layers, scales, tuple(map(int, invalid.tolist())))

    def _own_bank(self) -> wk.FilterBank:
        """The elements here of the convolutions that this rank counts."""
        weights = local_weights(self.own_convs)
        return wk.FilterBank([weight.flatten() for _, weight in weights.values()], names=list(weights))

    def _own_places(self) -> list[int]:
        """Their numbers among all convolutions."""
        return [i for i, rows in enumerate(self._convs.values()) if rows.first_copy]


def network_of(model: nn.Module, choice: Choice) -> Network:
    """The network of a rank: a `ShardedNetwork` if there are DTensors among what takes part."""
    parts = find_parts(model, choice.modules)
    tensors = [*(part.whole for part in parts.items), *(conv.weight for conv in parts.convs.values())]
    return (ShardedNetwork if any(map(is_distributed, tensors)) else Network)(model, choice)


def _place(section: Tensor, sizes: Iterable[int], rows: Iterable[Rows], values: Sequence[Tensor]) -> None:
    """Write ``values``, of the rows that this rank counts, to where they are among those of all ranks."""
    own = iter(values)
    for part, held in zip(section.split(list(sizes)), rows, strict=True):
        if held.first_copy:
            part[held.range] = next(own)
