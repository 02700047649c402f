"""`UnitActivity`: how active the units of a network are, and which never fire."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from we_kernels import to_device

from ..arguments import check_count, check_flag, check_inputs
from ..model.links import Links
from ..model.module_filters import ModuleChoice, ModuleFilter
from ..model.unit_graph import UnitLayer, find_units
from ..model.unit_shards import UnitShards
from ..model.weights import reason_without_layers
from ..sharding.failures import communication
from ..sharding.local_part import reshard
from .dormancy_report import DormancyReport
from .unit_sums import UnitSums, emptied, fits, sum_dtype


class UnitActivity:
    """Measures the activation of units in the forward passes that happen anyway, between `start` and `stop`.

    Units are output channels of convolutions and features of Linears. Measured is behind the nonlinearity, by hooks
    that do not wait for the device. ``graph`` says where, and which weights are outgoing ones; in ``graph.skipped`` are
    the layers that are left out. ``layer_sizes`` says how many units each layer has, in the order of ``graph.layers``.

        with UnitActivity(model) as activity:
            for images in loader:
                model(images)
        print(activity.report())

    Args:
        model: the network, only read. Wrappers (DistributedDataParallel, torch.compile) are seen through. Parameters
            may be DTensors that are spread by their rows (FSDP2, HSDP).
        batches: only the last so many forward passes count; all since `start` when None.
        include: only layers of these names (with all inside them), name patterns (``*``) or types.
        exclude: no layers of these names, patterns or types.
        example_inputs: arguments of forward, a tensor or a tuple. They are needed where torch.fx cannot trace the model
            or a reshaping does not show where the units go; ``graph.skipped`` says so.
        with_gradients: only forward passes that record gradients count, not those under ``torch.no_grad``.

    Raises:
        TypeError, ValueError: name the argument and say what to do; ValueError, too, if no layer can be measured.
            TypeError: a parameter is a DTensor that is spread in another way than by its rows.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        batches: int | None = None,
        include: Sequence[ModuleFilter] | None = None,
        exclude: Sequence[ModuleFilter] = (),
        example_inputs: Tensor | tuple[Tensor, ...] | None = None,
        with_gradients: bool = False,
    ) -> None:
        ModuleChoice(include, exclude).modules_of(model)
        reshard(model)
        self._batches = None if batches is None else check_count(batches, "batches", 1)
        self._with_gradients = check_flag(with_gradients, "with_gradients")
        self.graph = find_units(model, include=include, exclude=exclude, example_inputs=check_inputs(example_inputs))
        if not self.graph.layers:
            reasons = [*self.graph.errors, *(f"{name}: {reason}" for name, reason in self.graph.skipped.items())]
            raise ValueError(
                f"model has no layer whose units can be measured: {'; '.join(reasons) or reason_without_layers(model)}"
            )
        self.shards = UnitShards.of(self.graph.layers)
        """Which weights this rank has; None where it has all."""
        self.layer_sizes = tuple(layer.units for layer in self.graph.layers.values())
        self._model = model
        self._links = Links(model, [module for layer in self.graph.layers.values() for module in _modules_of(layer)])
        self._sums: dict[str, list[UnitSums]] = {}
        self._handles: list[RemovableHandle] = []
        self._layer_of_unit: Tensor | None = None

    def start(self) -> UnitActivity:
        """Measure from now on, and forget what was measured before.

        Raises:
            RuntimeError: it measures already, or a layer was replaced since this was made.
        """
        if self._handles:
            raise RuntimeError("this UnitActivity measures already; call stop() first")
        self._check_links()
        self._sums = {
            name: [UnitSums(place, units, self._batches, self._with_gradients) for place in layer.activations]
            for (name, layer), units in zip(self.graph.layers.items(), self.layer_sizes, strict=True)
        }
        self._handles = [sums.attach() for own in self._sums.values() for sums in own]
        return self

    def stop(self) -> None:
        """Measure no longer; what was measured stays for `report`. Once more does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @property
    def measuring(self) -> bool:
        """Whether forward passes are measured now."""
        return bool(self._handles)

    def state_dict(self, *, group: dist.ProcessGroup | None = None) -> dict[str, Any]:
        """What was measured since `start` or `clear`: layer name -> one dict of plain numbers for each place.

        Waits for the device.

        Args:
            group: with the sums of all its ranks, which have seen as many passes: one all-reduce. To go on from there,
                one of them loads it, and the others `without_sums` of it.

        Raises:
            ExchangeError: another rank did not take part.
        """
        state = {name: [sums.state_dict() for sums in own] for name, own in self._sums.items()}
        return state if group is None else self._added_up(state, group)

    @staticmethod
    def without_sums(state: Mapping[str, Any]) -> dict[str, Any]:
        """The same state of a measurement that has seen as many passes, and nothing in them."""
        return {name: [emptied(saved) for saved in own] for name, own in state.items()}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Whether `start` and `load_state_dict` can go on from there; changes nothing.

        Raises:
            ValueError: the state is of other layers, or damaged.
            RuntimeError: a layer was replaced since this was made.
        """
        self._check_links()
        places = {name: len(layer.activations) for name, layer in self.graph.layers.items()}
        if {name: len(own) if isinstance(own, list) else None for name, own in state.items()} != places:
            raise ValueError("state['activity'] is of another model: its layers or places are others")
        for name, layer in self.graph.layers.items():
            if not all(fits(saved, layer.units, self._batches) for saved in state[name]):
                raise ValueError(f"state['activity'][{name!r}] must hold the sums of {layer.units} units, per place")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with a measurement, after `start`.

        Raises:
            ValueError: the state is of other layers, or damaged. Nothing is changed.
            RuntimeError: it was not started, or a layer was replaced since.
        """
        self._check_started()
        self.check_state(state)
        for name, places in self._sums.items():
            device = self.graph.layers[name].module.weight.device
            for sums, saved in zip(places, state[name], strict=True):
                sums.load_state_dict(saved, device)

    def clear(self) -> None:
        """Forget what was measured; the measurement goes on if it does."""
        for own in self._sums.values():
            for sums in own:
                sums.clear()

    def __enter__(self) -> UnitActivity:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<UnitActivity of {len(self.graph.layers)} layers{', measuring' if self.measuring else ''}>"

    def __getstate__(self) -> dict[str, Any]:
        # A copy belongs to the copy of the model, which has not been measured.
        return {**self.__dict__, "_sums": {}, "_handles": []}

    @torch.no_grad()
    def activations(self, *, all_ranks: bool = False) -> Tensor:
        """Mean absolute activation of every unit since `start` or `clear`: float32 [U], layer after layer.

        In the order of ``graph.layers``, with `layer_sizes` units each, on the device of the first layer's activations.
        Does not wait for the device.

        Args:
            all_ranks: True for the mean over the activations of all ranks of torch.distributed, where it is
                initialized: a collective that every rank must call, one all-reduce. A rank that has seen no forward
                pass waits for it. False: of this rank alone, or, with DTensors, of the ranks that hold their shards.

        Raises:
            RuntimeError: a layer was not measured, on this rank or with ``all_ranks`` on any.
                ExchangeError: another rank did not take part.
        """
        check_flag(all_ranks, "all_ranks")
        self._check_started()
        group = self.averaged_over(all_ranks)
        seen = self._elements()
        if group is None:
            self._check_seen(seen)
        totals, elements, _ = self._summed(group)
        if not all(seen):
            self._check_seen(elements.tolist())
        return (totals / elements[self._layers_of_units(totals.device)]).float()

    @torch.no_grad()
    def report(self, *, all_ranks: bool = True) -> DormancyReport:
        """What was measured since `start` or `clear`, while it goes on or afterwards, with the weights as they are now.

        Waits for the device. With torch.distributed initialized it is a collective: every rank must call it, and gets
        the mean over the activations of all.

        Args:
            all_ranks: False for those of this rank alone, without communication; with DTensors, of the ranks that hold
                their shards.

        Raises:
            RuntimeError: no forward pass was measured. ExchangeError: another rank did not take part.
        """
        check_flag(all_ranks, "all_ranks")
        self._check_started()
        totals, elements, calls = (part.double().cpu() for part in self._summed(self.averaged_over(all_ranks)))
        self._check_seen(elements.tolist())
        layers, (incoming, outgoing) = self.graph.layers, self._norms()
        means = [total / count for total, count in zip(totals.split(self.layer_sizes), elements, strict=True)]
        return DormancyReport(
            activation=dict(zip(layers, means, strict=True)),
            outgoing={
                name: (norms / layer.outgoing_elements).double().cpu()
                for (name, layer), norms in zip(layers.items(), outgoing, strict=True)
            },
            incoming={name: norms.double().cpu() for name, norms in zip(layers, incoming, strict=True)},
            batches={name: int(count) for name, count in zip(layers, calls, strict=True)},
            skipped=dict(self.graph.skipped),
        )

    def _added_up(self, state: Mapping[str, Any], group: dist.ProcessGroup) -> dict[str, Any]:
        """A state with the sums of all ranks of a group."""
        places = [saved for own in state.values() for saved in own]
        rows = [[*row, count] for saved in places for row, count in zip(saved["sums"], saved["counts"], strict=True)]
        device = next(iter(self.graph.layers.values())).module.weight.device
        if not rows:  # no pass yet, on any rank
            return dict(state)
        numbers = torch.tensor([number for row in rows for number in row], dtype=sum_dtype(device)).to(device)
        with communication():
            dist.all_reduce(numbers, group=group)
        totals = iter(numbers.split([len(row) for row in rows]))
        added = []
        for saved in places:
            summed = [next(totals).tolist() for _ in saved["sums"]]
            counts = [int(row[-1]) for row in summed]
            added.append({**saved, "sums": [row[:-1] for row in summed], "counts": counts})
        found = iter(added)
        return {name: [next(found) for _ in own] for name, own in state.items()}

    def _norms(self) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """L1 norms of each layer's units' incoming and outgoing weights, float32 or float64 [units]."""
        reshard(self._model)
        if self.shards is None:
            layers = self.graph.layers.values()
            return [layer.incoming_norms() for layer in layers], [layer.outgoing_norms() for layer in layers]
        norms = self.shards.norms("a report on units", incoming=True, outgoing=True)
        return norms.incoming_norms().split(self.layer_sizes), norms.outgoing_norms().split(self.layer_sizes)

    def _check_links(self) -> None:
        if not self._links.hold():
            raise RuntimeError("a layer of the model was replaced since; make a new UnitActivity")

    def _check_started(self) -> None:
        if not self._sums:
            raise RuntimeError('nothing was measured; call start(), or use "with UnitActivity(model) as activity"')

    def _check_seen(self, elements: Sequence[float]) -> None:
        """``elements``: how many activations of each unit of each layer were summed."""
        if missing := [name for name, count in zip(self._sums, elements, strict=True) if not count]:
            others = "of empty batches or under torch.no_grad" if self._with_gradients else "of empty batches"
            raise RuntimeError(
                f"no forward pass through {', '.join(missing)} was seen since start() or clear(), or {others} only; "
                "run the model in between. Hooks are not called on a model that torch.compile compiled before start(), "
                "on replicas of DataParallel and in replays of CUDA graphs"
            )

    def _elements(self) -> list[int]:
        """Of each layer, over how many activations of each unit the sums go."""
        return [sum(sums.elements for sums in own) for own in self._sums.values()]

    def averaged_over(self, all_ranks: bool) -> dist.ProcessGroup | None:
        """The ranks over which `activations` averages; None for this one alone."""
        if not (dist.is_available() and dist.is_initialized()):
            return None
        if all_ranks:
            return dist.group.WORLD
        return None if self.shards is None else self.shards.group.group

    def _summed(self, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor, Tensor]:
        """Sums [U], over how many activations of each unit [L], in how many passes [L]: float64, on the first device.

        float32 where a device has no float64.
        """
        devices = [layer.module.weight.device for layer in self.graph.layers.values()]
        totals = [
            _added([sums.total(device) for sums in own])
            for own, device in zip(self._sums.values(), devices, strict=True)
        ]
        device = totals[0].device  # layers may be on several devices
        calls = [max(sums.kept_calls for sums in own) for own in self._sums.values()]
        counts = to_device((*self._elements(), *calls), totals[0].dtype, device)
        flat = torch.cat([*(total.to(device, counts.dtype) for total in totals), counts])
        if group is not None:
            with communication():
                dist.all_reduce(flat, group=group)
        layers = len(totals)
        summed, elements, passes = flat.split([len(flat) - 2 * layers, layers, layers])
        return summed, elements, passes

    def _layers_of_units(self, device: torch.device) -> Tensor:
        """int64 [U], the place of each unit's layer."""
        if self._layer_of_unit is None or self._layer_of_unit.device != device:
            layers = tuple(i for i, size in enumerate(self.layer_sizes) for _ in range(size))
            self._layer_of_unit = to_device(layers, torch.int64, device)
        return self._layer_of_unit


def _added(places: Sequence[Tensor]) -> Tensor:
    return places[0] if len(places) == 1 else torch.stack([*places]).sum(0)


def _modules_of(layer: UnitLayer) -> list[nn.Module]:
    """All modules that a measurement reads."""
    return [layer.module, *(reader.module for reader in layer.outgoing), *(place.module for place in layer.activations)]
