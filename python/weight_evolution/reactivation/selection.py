"""Which units start anew: dormant ones, or a share of the least useful."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any, Protocol

import torch
from torch import Tensor

import we_kernels as wk
from we_kernels.checks import is_number

from .network_units import NetworkUnits
from .options import ReactivationOptions


class Norms(Protocol):
    """L1 norms of the weights of all units."""

    def incoming_norms(self) -> Tensor:
        """float32 [U]: of each unit's incoming weights."""

    def outgoing_norms(self) -> Tensor:
        """float32 [U]: of each unit's outgoing weights."""


class DormantUnits:
    """Those of which the score is at most a threshold.

    Source: Sokar et al., "The Dormant Neuron Phenomenon in Deep Reinforcement Learning", ICML 2023.
    """

    def __init__(self, units: NetworkUnits, options: ReactivationOptions) -> None:
        self._sizes, self._threshold, self._by_norm = units.sizes, options.threshold, options.importance == "l1"
        self._parents = units.parents
        self.needs_incoming, self.needs_outgoing = self._by_norm, False
        """Which norms `select` asks for."""

    def select(self, activations: Tensor | None, free: Tensor | None, norms: Norms) -> Tensor:
        """bool [U] on the device of the activations, or of the weights for scores by norm.

        ``free``: bool [U], units that can start anew; all when None.
        """
        scored = norms.incoming_norms() if self._by_norm or activations is None else activations
        if self._parents is not None:
            self._parents = self._parents.to(scored.device)
        dormant = wk.dormant_units(scored, self._sizes, self._threshold, parents=self._parents)
        return dormant if free is None else dormant & free.to(dormant.device)

    def clone(self) -> DormantUnits:
        """Nothing is remembered."""
        return self

    def state_dict(self) -> dict[str, Any]:
        """Nothing is remembered."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing is remembered."""


class LeastUseful:
    """A share of the units that are old enough, those of the least utility; all on the device, nothing waits.

    Source: Dohare et al., "Loss of plasticity in deep continual learning", Nature 632 (2024), Algorithm 1.
    """

    def __init__(self, units: NetworkUnits, options: ReactivationOptions) -> None:
        assert options.replacement_rate is not None
        self._options, self._rate = options, options.replacement_rate
        self.needs_incoming, self.needs_outgoing = options.utility == "adaptation", True
        """Which norms `select` asks for."""
        self._ancestors = _ancestors(units.parents)
        count, layers = sum(units.sizes), len(units.sizes)
        self._utility, self._age = torch.zeros(count), torch.zeros(count)
        self._pending = torch.zeros(layers, dtype=torch.float64)
        self._layer = torch.arange(layers).repeat_interleave(torch.tensor(units.sizes))
        self._start = torch.tensor(units.starts)[self._layer]

    def select(self, activations: Tensor | None, free: Tensor | None, norms: Norms) -> Tensor:
        """bool [U]; counts as a step of every unit's age.

        ``free``: bool [U], units that can start anew, all when None; none of the others is due.
        """
        assert activations is not None
        if activations.device != self._utility.device:
            self._move(activations.device)
        self._age += 1
        useful = activations * norms.outgoing_norms()
        if self._options.utility == "adaptation":
            useful = useful / norms.incoming_norms()
        decay = self._options.decay
        self._utility.lerp_(useful, 1 - decay)
        corrected = self._utility / (1 - decay**self._age)
        mature = self._age > self._options.maturity
        if free is not None:
            free = free.to(mature.device)
            mature &= free
        self._pending += torch.zeros_like(self._pending).index_add_(0, self._layer, mature.double()) * self._rate
        due = self._pending.floor()
        self._pending -= due
        revived = self._lowest(corrected.where(mature, torch.inf)) < due[self._layer]
        revived &= mature
        own = revived
        for ancestor in self._ancestors:
            revived = revived | (own[ancestor.clamp(min=0)] & (ancestor >= 0))
        if free is not None:
            revived &= free
        self._utility.masked_fill_(revived, 0)
        self._age.masked_fill_(revived, 0)
        return revived

    def clone(self) -> LeastUseful:
        """Another one that goes on from here."""
        other = copy(self)
        for name in ("_utility", "_age", "_pending"):
            setattr(other, name, getattr(self, name).clone())
        return other

    def state_dict(self) -> dict[str, Any]:
        """Utilities, ages, and what is still due; waits for the device."""
        state = {"utility": self._utility, "age": self._age, "pending": self._pending}
        return {name: value.tolist() for name, value in state.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there.

        Raises:
            ValueError: the state has other entries.
        """
        own = {"utility": self._utility, "age": self._age, "pending": self._pending}
        for name, value in own.items():
            there = state.get(name)
            if not isinstance(there, list) or len(there) != len(value) or not all(map(is_number, there)):
                raise ValueError(f"state['selection'][{name!r}] must be a list of {len(value)} numbers")
        for name, value in own.items():
            value.copy_(torch.tensor(state[name], dtype=value.dtype))

    def _lowest(self, values: Tensor) -> Tensor:
        """int64 [U]: how many of the unit's layer come before it, in ascending order."""
        by_value = values.argsort(stable=True)
        order = by_value[self._layer[by_value].argsort(stable=True)]
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order), device=order.device)
        return place - self._start

    def _move(self, device: torch.device) -> None:
        for name in ("_utility", "_age", "_pending", "_layer", "_start"):
            setattr(self, name, getattr(self, name).to(device))
        self._ancestors = [ancestor.to(device) for ancestor in self._ancestors]


def _ancestors(parents: Tensor | None) -> list[Tensor]:
    """int64 [U] each: every unit's parent, the parent's parent, and so on; -1 for none."""
    found = []
    generation = parents.long() if parents is not None else None
    while generation is not None and bool((generation >= 0).any()):
        found.append(generation)
        assert parents is not None
        generation = torch.where(generation >= 0, parents.long()[generation.clamp(min=0)], -1)
    return found
