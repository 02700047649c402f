"""`UnitActivity`: how active the units of a network are, and which never fire."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..arguments import check_count, check_flag, check_inputs, check_model
from ..model.links import Links
from ..model.module_filters import ModuleFilter, check_filters
from ..model.unit_graph import UnitLayer, find_units
from ..model.weights import reason_without_layers
from ..model.wrappers import named_modules
from .dormancy_report import DormancyReport
from .unit_sums import UnitSums


class UnitActivity:
    """Measures the activation of units in the forward passes that happen anyway, between `start` and `stop`.

    Units are output channels of convolutions and features of Linears. Measured is behind the nonlinearity, by hooks
    that do not wait for the device. ``graph`` says where, and which weights are outgoing ones; in ``graph.skipped`` are
    the layers that are left out.

        with UnitActivity(model) as activity:
            for images in loader:
                model(images)
        print(activity.report())

    Args:
        model: the network, only read. Wrappers (DistributedDataParallel, torch.compile) are seen through.
        batches: only the last so many forward passes count; all since `start` when None.
        include: only layers of these names (with all inside them), name patterns (``*``) or types.
        exclude: no layers of these names, patterns or types.
        example_inputs: arguments of forward, a tensor or a tuple. They are needed where torch.fx cannot trace the model
            or a reshaping does not show where the units go; ``graph.skipped`` says so.

    Raises:
        TypeError, ValueError: name the argument and say what to do; ValueError, too, if no layer can be measured.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        batches: int | None = None,
        include: Sequence[ModuleFilter] | None = None,
        exclude: Sequence[ModuleFilter] = (),
        example_inputs: Tensor | tuple[Tensor, ...] | None = None,
    ) -> None:
        check_model(model)
        check_filters(include, exclude, dict(named_modules(model)))
        self._batches = None if batches is None else check_count(batches, "batches", 1)
        self.graph = find_units(model, include=include, exclude=exclude, example_inputs=check_inputs(example_inputs))
        if not self.graph.layers:
            reasons = [*self.graph.errors, *(f"{name}: {reason}" for name, reason in self.graph.skipped.items())]
            raise ValueError(
                f"model has no layer whose units can be measured: {'; '.join(reasons) or reason_without_layers(model)}"
            )
        self._links = Links(model, [module for layer in self.graph.layers.values() for module in _modules_of(layer)])
        self._sums: dict[str, list[UnitSums]] = {}
        self._handles: list[RemovableHandle] = []

    def start(self) -> UnitActivity:
        """Measure from now on, and forget what was measured before.

        Raises:
            RuntimeError: it measures already, or a layer was replaced since this was made.
        """
        if self._handles:
            raise RuntimeError("this UnitActivity measures already; call stop() first")
        if not self._links.hold():
            raise RuntimeError("a layer of the model was replaced since; make a new UnitActivity")
        self._sums = {
            name: [UnitSums(place, layer.units, self._batches) for place in layer.activations]
            for name, layer in self.graph.layers.items()
        }
        self._handles = [sums.attach() for own in self._sums.values() for sums in own]
        return self

    def stop(self) -> None:
        """Measure no longer; what was measured stays for `report`. Once more does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def __enter__(self) -> UnitActivity:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __getstate__(self) -> dict[str, Any]:
        # A copy belongs to the copy of the model, which has not been measured.
        return {**self.__dict__, "_sums": {}, "_handles": []}

    @torch.no_grad()
    def report(self, *, all_ranks: bool = True) -> DormancyReport:
        """What was measured since `start`, while it goes on or afterwards, with the weights as they are now.

        Waits for the device. With torch.distributed initialized it is a collective: every rank must call it, and gets
        the mean over the activations of all.

        Args:
            all_ranks: False for those of this rank alone, without communication.

        Raises:
            RuntimeError: no forward pass was measured.
        """
        check_flag(all_ranks, "all_ranks")
        if not self._sums:
            raise RuntimeError('nothing was measured; call start(), or use "with UnitActivity(model) as activity"')
        totals, elements, calls = self._measured(all_ranks and dist.is_available() and dist.is_initialized())
        if missing := [name for name, count in elements.items() if not count]:
            raise RuntimeError(
                f"no forward pass through {', '.join(missing)} was seen since start(), or of empty batches only; run "
                "the model in between. Hooks are not called on a model that torch.compile compiled before start(), on "
                "replicas of DataParallel and in replays of CUDA graphs"
            )
        layers = self.graph.layers
        return DormancyReport(
            activation={name: total / elements[name] for name, total in totals.items()},
            outgoing={name: layer.outgoing_magnitudes().double().cpu() for name, layer in layers.items()},
            incoming={name: layer.incoming_norms().double().cpu() for name, layer in layers.items()},
            batches=calls,
            skipped=dict(self.graph.skipped),
        )

    def _measured(self, all_ranks: bool) -> tuple[dict[str, Tensor], dict[str, int], dict[str, int]]:
        """Of each layer: sums [units], float64 on the CPU, over how many elements, and in how many passes."""
        parts: list[Tensor] = []
        for own in self._sums.values():
            counts = [sum(sums.elements for sums in own), max(sums.kept_calls for sums in own)]
            total = torch.stack([sums.total() for sums in own]).sum(0)
            parts += [total, torch.tensor(counts, dtype=total.dtype, device="cpu").to(total.device)]
        device = parts[0].device  # layers may be on several devices
        flat = torch.cat([part.to(device) for part in parts])
        if all_ranks:
            dist.all_reduce(flat)
        found = flat.double().cpu().split([len(part) for part in parts])
        totals, counts_found = found[::2], found[1::2]
        names = list(self._sums)
        return (
            dict(zip(names, totals, strict=True)),
            {name: int(count[0]) for name, count in zip(names, counts_found, strict=True)},
            {name: int(count[1]) for name, count in zip(names, counts_found, strict=True)},
        )


def _modules_of(layer: UnitLayer) -> list[nn.Module]:
    """All modules that a measurement reads."""
    return [layer.module, *(reader.module for reader in layer.outgoing), *(place.module for place in layer.activations)]
