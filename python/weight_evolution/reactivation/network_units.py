"""The tensors of a network that belong to its units, as a `UnitPlan`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.optim import Optimizer

import we_kernels as wk

from ..model.optimizer_state import OptimizerState, moments_of
from ..model.unit_graph import UnitGraph, UnitLayer
from ..model.unit_weights import Layer, OutgoingWeights, input_count, unit_count
from ..model.wrapped_optimizers import parameters_of, wrapped_optimizers
from ..sharding.local_part import is_distributed, local_part
from ..sharding.rows import Rows, rows_held
from .unit_adamw import UnitAdamW


@dataclass
class _Place:
    """A tensor of a module, and the units of its rows and columns."""

    name: str
    module: nn.Module
    attribute: str
    groups: int = 1
    rows: Tensor | None = None
    columns: Tensor | None = None
    row_value: str = "keep"
    column_value: str = "keep"

    @property
    def tensor(self) -> Tensor:
        """As it is now; perhaps a DTensor."""
        found: Tensor = getattr(self.module, self.attribute)
        return found

    def item(self) -> Item:
        """What is written to it."""
        tensor = self.tensor
        own = wk.UnitTensor(
            local_part(tensor), self.rows, self.columns, self.groups, self.row_value, self.column_value, self.name
        )
        return Item(own, tensor)


class Item(NamedTuple):
    """A tensor that a step writes to, with the tables of all its rows and columns."""

    own: wk.UnitTensor
    """With the part of the tensor that this rank has."""
    spread: Tensor
    """Spread over the ranks as the tensor is, and of its shape, perhaps with further dimensions."""
    given: float | Tensor | None = None
    """The number for the value "given"."""

    @property
    def shape(self) -> torch.Size:
        """Of the tensor on all ranks together."""
        return self.spread.shape[: self.own.tensor.dim()]

    @property
    def held(self) -> Rows:
        """Which of its rows this rank has."""
        return rows_held(self.own.name, self.spread, 0)

    @property
    def values(self) -> tuple[str, str]:
        """What the rows and columns of units become."""
        return self.own.row_value, self.own.column_value


class NetworkUnits:
    """All units of a graph, numbered layer after layer.

    Args:
        graph: the units.
        scale: how new units are scaled; "initial" leaves BatchNorm scales 1, others take the mean of the living.
        outgoing: "zero" or "keep".
    """

    def __init__(self, graph: UnitGraph, scale: str, outgoing: str) -> None:
        self.layers = graph.layers
        self.sizes = [layer.units for layer in self.layers.values()]
        self.starts = [0, *accumulate(self.sizes)][:-1]
        self._places: dict[tuple[str, str], _Place] = {}
        for layer, units in zip(self.layers.values(), self._numbers(), strict=True):
            self._add_incoming(layer, units, scale)
            for reader in layer.outgoing if outgoing == "zero" else ():
                self._add_outgoing(reader, units)
        self._plan: wk.UnitPlan | None = None
        self._planned: list[int] = []
        self._mask: tuple[tuple[tuple[bool, ...], torch.device], Tensor] | None = None

    @cached_property
    def parents(self) -> Tensor | None:
        """int32 [U]: of a depthwise convolution's units those that they read; None without any."""
        found = torch.full((sum(self.sizes),), -1, dtype=torch.int32)
        numbers = dict(zip(self.layers, self._numbers(), strict=True))
        for name, layer in self.layers.items():
            for reader in layer.depthwise:
                if reader.name in numbers:
                    own = _by_channel(reader, numbers[name])
                    found[numbers[reader.name]] = own.repeat_interleave(unit_count(reader.module) // len(own)).int()
        return found if bool((found >= 0).any()) else None

    def reasons_against(self, optimizer: Optimizer) -> dict[str, str]:
        """Layer name -> why its units cannot take part: the optimizer does not train a weight of theirs."""
        trained = set(map(id, parameters_of(optimizer)))
        found = {}
        for name, layer in self.layers.items():
            for place, parameter in _parameters_of(layer):
                if not parameter.requires_grad or id(parameter) not in trained:
                    found[name] = (
                        f"{place} is {'not trained by the optimizer' if parameter.requires_grad else 'frozen'}"
                    )
                    break
        return found

    def mask_without(self, names: Collection[str], device: torch.device) -> Tensor | None:
        """bool [U] on ``device``: units of the other layers; None for all. Sent there again only when it changes."""
        if not names:
            return None
        key = tuple(name not in names for name in self.layers), device
        if self._mask is None or self._mask[0] != key:
            mask = torch.tensor(key[0]).repeat_interleave(torch.tensor(self.sizes))
            self._mask = key, mask.to(device)
        return self._mask[1]

    def plan(self, state: OptimizerState) -> tuple[wk.UnitPlan, Sequence[float] | Tensor]:
        """The plan for the tensors as they are now, and the numbers for what is given."""
        found = self.items(state)
        items = [item.own for item in found]
        given = [item.given for item in found if item.given is not None]
        identities = [id(item.tensor) for item in items]
        if self._plan is None or identities != self._planned:
            self._plan, self._planned = wk.UnitPlan(items, sum(self.sizes)), identities
        numbers = [number for number in given if not isinstance(number, Tensor)]
        if len(numbers) == len(given):
            return self._plan, numbers
        # Steps that the optimizer counts on the device.
        device = self._plan.device
        parts = [n.to(device) if isinstance(n, Tensor) else torch.full((), n, device=device) for n in given]
        return self._plan, torch.stack([part.float().reshape(()) for part in parts])

    @torch.no_grad()
    def items(self, state: OptimizerState) -> list[Item]:
        """All tensors that a step writes to, as they are now: the network's, then the optimizer's."""
        return [*(place.item() for place in self._places.values()), *self._state(state)]

    def keep_resets(self, optimizer: Optimizer) -> None:
        """Have a UnitAdamW hold the ages of DTensors from their first step on, so that checkpoints have them."""
        for one in (optimizer, *wrapped_optimizers(optimizer)):
            trained = set(map(id, parameters_of(one))) if isinstance(one, UnitAdamW) else set()
            for place in self._places.values():
                if isinstance(one, UnitAdamW) and id(place.tensor) in trained and is_distributed(place.tensor):
                    one.keep_resets(place.tensor, place.groups)

    def incoming_norms(self) -> Tensor:
        """float32 [U]: the L1 norm of each unit's incoming weights."""
        return torch.cat([layer.incoming_norms().float() for layer in self.layers.values()])

    def outgoing_norms(self) -> Tensor:
        """float32 [U]: the L1 norm of each unit's outgoing weights."""
        return torch.cat([layer.outgoing_norms().float() for layer in self.layers.values()])

    def __getstate__(self) -> dict[str, object]:
        # A copy has other tensors.
        return {**self.__dict__, "_plan": None, "_planned": []}

    @property
    def drawn(self) -> list[tuple[int, str]]:
        """For each layer, which item of the plan its weights are, and "rows" or "columns"."""
        keys = list(self._places)
        return [(keys.index((name, "weight")), _incoming_axis(layer.module)) for name, layer in self.layers.items()]

    @property
    def tensors(self) -> list[Tensor]:
        """Those of the network that a step writes to, the first ones of `items`; perhaps DTensors."""
        return [place.tensor for place in self._places.values()]

    @property
    def parameters(self) -> list[Tensor]:
        """All that a step may change, without running statistics."""
        return [tensor for tensor in self.tensors if isinstance(tensor, nn.Parameter)]

    def _numbers(self) -> list[Tensor]:
        return list(torch.arange(sum(self.sizes)).split(self.sizes))

    def _place(self, name: str, module: nn.Module, attribute: str) -> _Place:
        key = name, attribute
        if key not in self._places:
            groups = module.groups if isinstance(module, _ConvNd) and attribute == "weight" else 1
            self._places[key] = _Place(f"{name}.{attribute}" if name else attribute, module, attribute, groups)
        return self._places[key]

    def _add_incoming(self, layer: UnitLayer, units: Tensor, scale: str) -> None:
        place = self._place(layer.name, layer.module, "weight")
        if _incoming_axis(layer.module) == "rows":
            place.rows, place.row_value = units, "draw"
        else:
            place.columns, place.column_value = units, "draw"
        if layer.bias is not None:
            self._add_vector(layer.name, layer.module, "bias", units, "zero")
        if isinstance(layer.norm, _BatchNorm):
            scale_value = "one" if scale == "initial" else "mean or one"
            values = {"weight": scale_value, "bias": "zero", "running_mean": "zero", "running_var": "one"}
            for attribute, value in values.items():
                if getattr(layer.norm, attribute) is not None:
                    self._add_vector(layer.norm_name or "", layer.norm, attribute, units, value)

    def _add_vector(self, name: str, module: nn.Module, attribute: str, units: Tensor, value: str) -> None:
        place = self._place(name, module, attribute)
        place.rows, place.row_value = units, value

    def _add_outgoing(self, reader: OutgoingWeights, units: Tensor) -> None:
        place = self._place(reader.name, reader.module, "weight")
        channels = _by_channel(reader, units)
        if _incoming_axis(reader.module) == "columns":
            place.rows, place.row_value = _merged(place.rows, channels), "zero"
        else:
            place.columns, place.column_value = _merged(place.columns, channels), "zero"

    def _state(self, state: OptimizerState) -> Iterator[Item]:
        """Of the optimizer."""
        places = {id(place.tensor): place for place in self._places.values()}
        within = (state.optimizer, *wrapped_optimizers(state.optimizer))
        ageing = [one for one in within if isinstance(one, UnitAdamW) and state.choice != "keep"]
        for moment in moments_of(state, self.parameters):
            place = places[id(moment.parameter)]
            initial = 0.0 if ageing else moment.initial
            value = "mean" if initial is None else "zero" if initial == 0 else "given"
            yield _like(place, moment.value, value, initial if value == "given" else None)
        for optimizer in ageing:
            for place in places.values():
                yield from _ages(place, optimizer)


def _parameters_of(layer: UnitLayer) -> Iterator[tuple[str, Tensor]]:
    """What is written when a unit starts anew, by name; without running statistics."""
    modules = {layer.name: layer.module, layer.norm_name: layer.norm}
    for name, module in modules.items():
        for attribute, parameter in module._parameters.items() if module is not None else ():
            if parameter is not None:
                yield f"{name}.{attribute}", parameter
    for reader in layer.outgoing:
        yield f"{reader.name}.weight", reader.module.weight


def _ages(place: _Place, optimizer: UnitAdamW) -> Iterator[Item]:
    """What counts when the rows and columns of a parameter were last reset."""
    resets = optimizer.unit_resets(place.tensor, place.groups) if place.tensor in optimizer.state else None
    if resets is None:
        return
    step = float(resets.step) if resets.step.device.type == "cpu" else resets.step
    name = f"age of {place.name}"
    if place.rows is not None and place.row_value != "keep":
        yield Item(wk.UnitTensor(resets.rows, place.rows, row_value="given", name=name), place.tensor, step)
    if place.columns is not None and place.column_value != "keep":
        columns = wk.UnitTensor(resets.columns, place.columns, row_value="given", name=name)
        yield Item(columns, resets.columns, step)


def _like(place: _Place, tensor: Tensor, value: str, given: float | None) -> Item:
    """Another tensor of a place's shape, with one value for all that is written."""
    row, column = ("keep" if own == "keep" else value for own in (place.row_value, place.column_value))
    name = f"optimizer state of {place.name}"
    own = wk.UnitTensor(tensor, place.rows, place.columns, place.groups, row, column, name)
    return Item(own, place.tensor, given)


def _incoming_axis(layer: Layer) -> str:
    return "columns" if isinstance(layer, _ConvNd) and layer.transposed else "rows"


def _by_channel(reader: OutgoingWeights, units: Tensor) -> Tensor:
    """The unit of each input of a layer; -1 for none of these."""
    channels = torch.full((input_count(reader.module),), -1)
    own = units.repeat_interleave(reader.block)
    channels[reader.offset : reader.offset + len(own)] = own
    return channels


def _merged(before: Tensor | None, channels: Tensor) -> Tensor:
    return channels if before is None else torch.where(channels >= 0, channels, before)
