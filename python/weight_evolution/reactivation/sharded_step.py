"""The acting step of a network whose parameters are spread over the ranks of a group (docs/scaling.md)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple
from zlib import crc32

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from ..model.sharded_state import ShardedState
from ..model.targets import by_output
from ..model.unit_shards import UnitNorms, UnitShards
from ..sharding.attempts import Attempts
from ..sharding.gather import as_float32, as_float64, gather
from .initialisation import by_module, donor_norms, fresh_weight, in_place_of
from .network_units import Item
from .selection import DormantUnits, LeastUseful
from .step import UnitStep, first_of
from .unit_part import SUMS, UnitPart, has_any, needs_sums


class _Seen(NamedTuple):
    """What a step works on."""

    items: list[Item]
    summed: list[int]
    """Positions of the items of which `UnitPart.sums` of all ranks are needed."""
    others: ShardedState
    """The optimizer's state beside its moments."""


class _Prepared(NamedTuple):
    """What a rank has made before it writes."""

    selection: DormantUnits | LeastUseful
    revived: Tensor
    parts: dict[int, UnitPart]
    """Position of each item that has a revived unit -> this rank's part."""
    norms: Tensor | None
    """float32 [U], of donors."""
    own: dict[int, Tensor]
    """Position of a weight -> what the user's function drew for this rank's rows, [outputs, ...]."""


class ShardedUnitStep(UnitStep):
    """Revives units whose weights are spread over ranks by rows, with the results of one process that has them all.

    Which units start anew all ranks know from an all-gather of norms, and from activations that are averaged over all.
    Each then writes its own rows, and in them the columns of the units that they read. A second all-gather brings sums
    for means, and tells that all ranks have drawn: nothing is written and nothing counted before. The host waits for
    the device.

    Args:
        units, state, options, init: see `UnitStep`.
        shards: which rank has which rows.
    """

    def __init__(self, *args: Any, shards: UnitShards) -> None:
        super().__init__(*args)
        self._shards = shards
        if shards.replicated and not self._options.all_ranks:
            raise ValueError(
                "all_ranks=False is not possible with DTensors that are replicated, too (HSDP): all replicas must "
                "revive the same units; leave it out"
            )
        self._asked = {
            "incoming": self._options.scale == "donor" or self.selection.needs_incoming,
            "outgoing": self.selection.needs_outgoing,
        }
        self._scaled = self._options.scale == "layer"

    def run(self, activations: Tensor | None, step: int, frozen: Collection[str]) -> Tensor:
        """bool [U]: the units that started anew, of all ranks of the group together.

        Raises:
            ExchangeError: another rank failed; nothing was changed.
        """
        attempts = Attempts()
        seen = attempts(self._see, lambda: _Seen([], [], ShardedState(self._state, [], moments=False)))
        device = next(iter(self._units.layers.values())).module.weight.device
        agreed = self._agreed(step, frozen, seen)

        def measure() -> Tensor:
            attempts.check()
            return self._shards.norms_here(**self._asked)

        group = self._shards.group
        rows = gather(group, measure, self._shards.size(**self._asked), agreed, device)
        norms = self._shards.norms_of(rows, **self._asked)
        prepared: list[_Prepared] = []

        def prepare() -> Tensor:
            """float32: sums of this rank's rows."""
            prepared.append(self._prepare(seen, activations, norms, step, frozen))
            parts, none = prepared[0].parts, torch.zeros(SUMS, dtype=torch.float64, device=device)
            sums = [parts[i].sums(scaled=self._scaled) if i in parts else none for i in seen.summed]
            return as_float32(torch.stack(sums)) if sums else torch.empty(0, dtype=torch.float32, device="cpu")

        numbers = gather(group, prepare, 2 * SUMS * len(seen.summed), agreed, device)
        self._write(seen, prepared[0], numbers, agreed)
        self.selection = prepared[0].selection
        return prepared[0].revived

    def _see(self) -> _Seen:
        items = self._units.items(self._state)
        summed = [i for i, item in enumerate(items) if needs_sums(item, scaled=self._scaled)]
        return _Seen(items, summed, ShardedState(self._state, self._units.parameters, moments=False))

    def _agreed(self, step: int, frozen: Collection[str], seen: _Seen) -> str:
        options = {**self._options.to_dict(), "optimizer_state": self._state.choice}
        remembered = crc32(repr(self.selection.state_dict()).encode())
        return (
            f"acting step {step} of a reactivation with {options}, {len(seen.items)} tensors, {len(seen.summed)} of "
            f"them with means, {seen.others.size} sums of further optimizer state, frozen layers {sorted(frozen)}, "
            f"utilities and ages {remembered:08x}"
        )

    def _prepare(
        self, seen: _Seen, activations: Tensor | None, norms: UnitNorms, step: int, frozen: Collection[str]
    ) -> _Prepared:
        selection, device = self.selection.clone(), seen.items[0].own.tensor.device
        revived = selection.select(activations, self._units.mask_without(frozen, device), norms).to(device)
        on_host = revived.cpu()
        parts = {i: UnitPart(item, revived) for i, item in enumerate(seen.items) if has_any(item, on_host)}
        drawn = [i for i, item in enumerate(seen.items) if "draw" in item.values]
        for number, i in enumerate(drawn):
            if i in parts:
                parts[i].draw(number, self._options.seed, step)
        targets = None
        if self._options.scale == "donor":
            incoming = norms.incoming_norms()
            targets = donor_norms(self._units.sizes, revived, first_of(activations, incoming), incoming)
        elif self._options.scale == "initial":
            targets = torch.zeros(len(revived), device=device)
        return _Prepared(selection, revived, parts, targets, self._own_weights(seen, revived, step))

    def _own_weights(self, seen: _Seen, revived: Tensor, step: int) -> dict[int, Tensor]:
        found: dict[int, Tensor] = {}
        layers = zip(self._units.layers.values(), self._units.drawn, revived.split(self._units.sizes), strict=True)
        for seed, (layer, (i, axis), mask) in enumerate(layers, self._first_seed(step)):
            if self._init is not None and bool(mask.any()):
                item = seen.items[i]
                fresh = fresh_weight(item.own.tensor.new_empty(item.shape), self._init, seed)
                found[i] = by_output(layer.module, fresh)[_outputs(item, axis)].clone()
        return found

    def _write(self, seen: _Seen, prepared: _Prepared, numbers: Tensor, agreed: str) -> None:
        totals = numbers.new_zeros(len(seen.items), SUMS, dtype=torch.float64)
        for i, of_ranks in zip(seen.summed, as_float64(numbers).split(SUMS, dim=1), strict=False):
            if i in prepared.parts:
                # Of a tensor that every rank has, the first one speaks.
                totals[i] = of_ranks[0] if prepared.parts[i].is_whole else of_ranks.sum(0)
        after: dict[int, Tensor] = {}

        def make_copies() -> Tensor:
            after.update(self._after(seen, prepared, totals))
            return seen.others.sums({id(tensor): after[i] for i, tensor in enumerate(self._units.tensors)})

        if seen.others.size:
            seen.others.write_(gather(self._shards.group, make_copies, seen.others.size, agreed, numbers.device))
        elif prepared.own:
            after = self._after(seen, prepared, totals)
        for i, part in prepared.parts.items():
            own = seen.items[i].own.tensor
            if i in after:
                own.copy_(after[i])
            else:
                part.write_(own, totals[i], prepared.norms)
        increment_version(self._units.parameters)

    def _after(self, seen: _Seen, prepared: _Prepared, totals: Tensor) -> dict[int, Tensor]:
        """Position of each tensor of the network -> a copy with what will be in it."""
        found = {}
        for i in range(len(self._units.tensors)):
            found[i] = seen.items[i].own.tensor.clone()
            if i in prepared.parts:
                prepared.parts[i].write_(found[i], totals[i], prepared.norms)
        layers = zip(
            self._units.layers.values(), self._units.drawn, prepared.revived.split(self._units.sizes), strict=True
        )
        for layer, (i, axis), mask in layers:
            if i in prepared.own:
                drawn, revived = by_output(layer.module, found[i]), mask[_outputs(seen.items[i], axis)]
                rescale = self._options.scale != "initial"
                found[i] = by_module(layer.module, in_place_of(drawn, prepared.own[i], revived, rescale))
        return found


def _outputs(item: Item, axis: str) -> slice:
    """Which of a layer's outputs this rank has; all where they are columns of the weight."""
    return item.held.range if axis == "rows" else slice(None)
