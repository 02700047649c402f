"""`UnitStep`: selects units and lets them start anew."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

import we_kernels as wk

from ..model.optimizer_state import OptimizerState, StateUpdate
from .initialisation import Init, donor_norms, draw_
from .network_units import NetworkUnits
from .options import ReactivationOptions
from .selection import DormantUnits, LeastUseful


class UnitStep:
    """The acting steps of a network whose weights this process has.

    Args:
        units: of the network.
        state: the optimizer, and what is to become of its state.
        options: what is selected and drawn.
        init: draws weights; None for PyTorch's own way.
    """

    def __init__(
        self, units: NetworkUnits, state: OptimizerState, options: ReactivationOptions, init: Init | None
    ) -> None:
        self._units, self._state, self._options, self._init = units, state, options, init
        kind = DormantUnits if options.replacement_rate is None else LeastUseful
        self.selection: DormantUnits | LeastUseful = kind(units, options)

    def run(self, activations: Tensor | None, step: int, frozen: Collection[str]) -> Tensor:
        """bool [U]: the units that started anew.

        Args:
            activations: float32 [U]; None where scores are by norm.
            step: number of acting steps before.
            frozen: layers whose units take no part.
        """
        options = self._options
        plan, given = self._units.plan(self._state)
        free = self._units.mask_without(frozen, plan.device)
        revived = self.selection.select(activations, free, self._units).to(plan.device)
        others = StateUpdate(self._state, self._units.parameters, moments=False)
        scale: str | Tensor = options.scale
        if scale == "donor":
            norms = self._units.incoming_norms()
            scale = self._targets(plan, donor_norms(self._units.sizes, revived, first_of(activations, norms), norms))
        wk.reactivate_(plan, revived, seed=options.seed, step=step, scale=scale, given=given)
        if self._init is not None:
            layers = zip(self._units.layers.values(), revived.split(self._units.sizes), strict=True)
            for seed, (layer, mask) in enumerate(layers, self._first_seed(step)):
                draw_(layer, mask, self._init, seed, options.scale != "initial")
        others.apply_()
        return revived

    def _targets(self, plan: wk.UnitPlan, norms: Tensor) -> Tensor:
        """float32 [plan.entries]: norms of all units, where the plan has their weights."""
        targets = torch.zeros(plan.entries, device=plan.device)
        for own, (item, axis) in zip(norms.split(self._units.sizes), self._units.drawn, strict=True):
            start = plan.start(item, axis)
            targets[start : start + len(own)] = own
        return targets

    def _first_seed(self, step: int) -> int:
        """Of the first layer's weights by ``init``."""
        return self._options.seed + step * len(self._units.sizes)


def first_of(activations: Tensor | None, norms: Tensor) -> Tensor:
    """What donors are matched by: activations, if they were measured."""
    return norms if activations is None else activations
