"""`UnitShards`: the weights of units that are spread over ranks (DTensors), and their norms on every rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..sharding.gather import as_float32, as_float64, gather
from ..sharding.local_part import is_distributed
from ..sharding.meshes import Spread, placement_of
from ..sharding.placement import Placement
from ..sharding.rows import rows_held
from .unit_graph import UnitLayer
from .unit_weights import OutgoingWeights


class UnitNorms(NamedTuple):
    """Of all units, layer after layer; None where they were not asked for."""

    incoming: Tensor | None
    """float32 [U]: the L1 norm of each unit's incoming weights."""
    outgoing: Tensor | None
    """float32 [U]: the L1 norm of each unit's outgoing weights."""

    def incoming_norms(self) -> Tensor:
        """As those of a whole model."""
        assert self.incoming is not None
        return self.incoming

    def outgoing_norms(self) -> Tensor:
        """As those of a whole model."""
        assert self.outgoing is not None
        return self.outgoing


class UnitShards:
    """Which units' weights this rank has. Every rank has all columns of its rows.

    Args:
        layers: of a unit graph.
        placement: of their parameters, which rank has which rows.
        replicated: whether other ranks have the same rows (HSDP).
    """

    def __init__(self, layers: Mapping[str, UnitLayer], placement: Placement, replicated: bool) -> None:
        self._layers, self.replicated = layers, replicated
        self.group = placement
        """Says which ranks."""
        sharded = [_is_sharded(layer.module.weight) for layer in layers.values()]
        self.units = Placement(placement.group, [layer.units for layer in layers.values()], sharded)
        """Which rank has which unit's incoming weights."""

    @classmethod
    @torch.no_grad()
    def of(cls, layers: Mapping[str, UnitLayer]) -> UnitShards | None:
        """None where every rank has all.

        Raises:
            TypeError: a parameter is spread in another way than by its rows; names it, and says how to go on.
            ValueError: two are spread over different ranks.
        """
        owners: dict[str, tuple[Tensor, list[str]]] = {}
        for name, layer in layers.items():
            for place, tensor in _parameters_of(layer):
                owners.setdefault(place, (tensor, []))[1].append(name)
        if not any(is_distributed(tensor) for tensor, _ in owners.values()):
            return None
        placement = placement_of(
            [
                Spread(place, tensor, 0, True, instead=f"leave out the layers whose units it has: exclude={names}")
                for place, (tensor, names) in owners.items()
            ]
        )
        if placement is None:
            return None
        weights = {layer.name: layer.module for layer in layers.values()}
        weights |= {reader.name: reader.module for layer in layers.values() for reader in layer.outgoing}
        for name, module in weights.items():
            if isinstance(module, _ConvNd) and module.transposed and _is_sharded(module.weight):
                raise TypeError(
                    f"{name}.weight is a DTensor, of a transposed convolution, whose units do not lie along its first "
                    "dimension; keep it whole (ignored_params= of fully_shard), or leave out the layers whose units it "
                    f"has: exclude={owners[f'{name}.weight'][1]}"
                )
        meshes: list[Any] = [tensor for tensor, _ in owners.values() if _is_sharded(tensor)]
        return cls(layers, placement, any(tensor.device_mesh.size() > placement.ranks for tensor in meshes))

    def norms(self, agreed: str, *, incoming: bool, outgoing: bool) -> UnitNorms:
        """Those of all units, on every rank: one all-gather.

        Raises:
            ExchangeError: another rank failed, or is about to do something else than ``agreed``.
        """
        asked = {"incoming": incoming, "outgoing": outgoing}
        device = next(iter(self._layers.values())).module.weight.device
        rows = gather(self.group, lambda: self.norms_here(**asked), self.size(**asked), agreed, device)
        return self.norms_of(rows, **asked)

    def size(self, *, incoming: bool, outgoing: bool) -> int:
        """float32 numbers of `norms_here`, at most."""
        return (self.units.most if incoming else 0) + (2 * sum(self.units.sizes) if outgoing else 0)

    def norms_here(self, *, incoming: bool, outgoing: bool) -> Tensor:
        """float32 [size]: what this rank's rows contribute to the norms."""
        parts = [torch.empty(0, dtype=torch.float32, device="cpu")]
        if incoming:
            own = torch.cat([layer.incoming_norms().float() for layer in self._layers.values()])
            parts = [own, own.new_zeros(self.units.most - len(own))]
        if outgoing:
            sums = torch.cat([self._outgoing_here(layer) for layer in self._layers.values()])
            parts = [*(part.to(sums.device) for part in parts), as_float32(sums)]
        return torch.cat(parts)

    def norms_of(self, rows: Tensor, *, incoming: bool, outgoing: bool) -> UnitNorms:
        """What all ranks' contributions give, [ranks, size]; sums in the order of the ranks.

        Incoming norms are those of one process. Outgoing ones are sums of parts: they differ from those of one process
        in the last bits.
        """
        most = self.units.most if incoming else 0
        return UnitNorms(
            self.units.by_filter(rows[:, :most]) if incoming else None,
            as_float64(rows[:, most:]).sum(0).float() if outgoing else None,
        )

    def _outgoing_here(self, layer: UnitLayer) -> Tensor:
        """float64 [units]; of a weight that every rank has the first one's."""
        return torch.stack([self._of_reader(reader, layer.units) for reader in layer.outgoing]).sum(0)

    def _of_reader(self, reader: OutgoingWeights, units: int) -> Tensor:
        weight = reader.module.weight
        if _is_sharded(weight):
            return reader.norms_of_rows(units, rows_held(reader.name, weight, 0).first)
        norms = reader.norms(units).double()
        return norms if self.group.rank == 0 else torch.zeros_like(norms)


def _parameters_of(layer: UnitLayer) -> Iterator[tuple[str, Tensor]]:
    """All tensors that a unit has a part of, by name, running statistics included."""
    modules: list[tuple[str, nn.Module | None]] = [(layer.name, layer.module), (layer.norm_name or "", layer.norm)]
    for name, module in modules:
        for attribute in ("weight", "bias", "running_mean", "running_var") if module is not None else ():
            if isinstance(tensor := getattr(module, attribute, None), Tensor):
                yield f"{name}.{attribute}", tensor
    for reader in layer.outgoing:
        yield f"{reader.name}.weight", reader.module.weight


def _is_sharded(tensor: Tensor) -> bool:
    """Whether this rank need not have all rows of a tensor that `placement_of` took."""
    return is_distributed(tensor) and any(
        kind.is_shard() and ranks > 1
        for kind, ranks in zip(tensor.placements, tensor.device_mesh.shape, strict=True)  # type: ignore[attr-defined]
    )
