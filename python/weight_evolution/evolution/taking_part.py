"""`TakingPart`: the parameters that evolve now, and the step that is made for them."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.optim import Optimizer

from ..model.module_filters import ModuleChoice
from ..model.parameters import COMPUTED, candidates, find_targets
from ..model.structure import Structure
from ..model.targets import Targets
from ..sharding.local_part import reshard
from .device_step import DeviceStep
from .inferior_shifts import InferiorShifts
from .options import EvolutionOptions


class TakingPart:
    """Which parameters of a model take part, found anew where the model changed.

    Args:
        model, options, optimizer: see `WeightEvolution`.
        choice: its ``include`` and ``exclude``.
        make_step: of the targets and the restriction of the shifts.

    Raises:
        TypeError, ValueError: see `find_targets` and `InferiorShifts`, or a parameter that `FilterBank` refuses.
    """

    def __init__(
        self,
        model: nn.Module,
        options: EvolutionOptions,
        choice: ModuleChoice,
        *,
        optimizer: Optimizer | None,
        make_step: Callable[[Targets, InferiorShifts | None], DeviceStep],
    ) -> None:
        self._model, self._choice, self._optimizer = model, choice, optimizer
        self._linear, self._only_inferior_shifts = options.linear_rate > 0, options.only_inferior_shifts
        self._make_step = make_step
        self.targets = self._find()
        self.device_step = self._step_of(self.targets)
        self._structure = self._structure_now()
        if not any(target.parameter.is_meta for target in self.targets.items):
            self.targets.bank()

    def follow(self) -> None:
        """Where the model changed, find anew what takes part; counters carry over.

        Raises:
            TypeError: a weight that took part is computed from other parameters now.
        """
        if self.targets.distributed:
            reshard(self._model)
        if self._structure.holds():
            return
        targets = self._find()
        for target in self.targets.items:
            if targets.skipped.get(target.name) == COMPUTED:
                raise TypeError(f"{target.name} is now {COMPUTED}; undo that or make a new WeightEvolution")
        device_step = self._step_of(targets)
        counters = dict(zip(self.targets.kinds, self.device_step.counters, strict=True))
        device_step.counters = [counters.get(kind, 0) for kind in targets.kinds]
        self.targets, self.device_step, self._structure = targets, device_step, self._structure_now()

    def _find(self) -> Targets:
        return find_targets(self._model, self._choice, linear=self._linear, optimizer=self._optimizer)

    def _step_of(self, targets: Targets) -> DeviceStep:
        return self._make_step(targets, InferiorShifts(self._model, targets) if self._only_inferior_shifts else None)

    def _structure_now(self) -> Structure:
        return Structure(self._model, candidates(self._model, self._linear), self._optimizer)
