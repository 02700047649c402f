"""What the kernels are measured against, and the kernels, behind one interface."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

import we_kernels as wk
from benchmarks.case import LOCAL_RATIO, Case
from we_kernels.runtime import backends


class Implementation(Protocol):
    """One way to compute an evolution. `step` returns importances [F] and donors [F]."""

    name: str
    contracts: bool
    """It may compute a * b + c without rounding between, so it need not have the reference's bits."""

    def active(self) -> AbstractContextManager[None]:
        """To be entered around the calls, outside of what is timed."""
        ...

    def importance(self, case: Case) -> Tensor: ...
    def match(self, case: Case, importance: Tensor) -> Tensor: ...
    def crossover(self, case: Case, donor: Tensor) -> None: ...
    def step(self, case: Case) -> tuple[Tensor, Tensor]: ...


class Backend:
    """A backend of `we_kernels`, through the functions that users call."""

    contracts = False

    def __init__(self, name: str) -> None:
        self.name = name

    def active(self) -> AbstractContextManager[None]:
        return wk.use_backend(self.name)

    def importance(self, case: Case) -> Tensor:
        return wk.filter_importance(case.bank)

    def match(self, case: Case, importance: Tensor) -> Tensor:
        arguments: dict[str, Any] = case.selection_arguments
        return wk.match_filters(case.bank, importance, **arguments).donor

    def crossover(self, case: Case, donor: Tensor) -> None:
        wk.crossover_(case.bank, donor, case.rule, validate=False)

    def step(self, case: Case) -> tuple[Tensor, Tensor]:
        arguments: dict[str, Any] = case.selection_arguments
        selection = wk.evolve_(case.bank, rule=case.rule, **arguments)
        return selection.importance, selection.donor


class PerLayer:
    """Vectorised PyTorch, layer by layer: what a competent user writes in place of the released program's loops.

    The host waits for the device once per evolution, for all layers' counts together; layers without inferior
    filters are not sorted. ``abs().sum()`` is the fastest L1 norm that PyTorch has here: ``torch.linalg.vector_norm``
    took 2 to 3 times as long on all three networks (torch 2.13, 2 CPU cores).
    """

    name = "per_layer"
    contracts = False

    def active(self) -> AbstractContextManager[None]:
        return nullcontext()

    def importance(self, case: Case) -> Tensor:
        return torch.cat([_importance(weight) for weight in case.weights])

    def match(self, case: Case, importance: Tensor) -> Tensor:
        donor = torch.full((len(importance),), -1, dtype=torch.int32, device=importance.device)
        of_layer = case.bank.split(donor)
        for layer, inferior, dominant in _match(case, list(case.bank.split(importance))):
            of_layer[layer][inferior] = dominant.int()
        return donor

    def crossover(self, case: Case, donor: Tensor) -> None:
        counts = torch.stack([(rows >= 0).sum() for rows in case.bank.split(donor)]).tolist()
        for weight, rows, count in zip(case.weights, case.bank.split(donor), counts, strict=True):
            if count:
                inferior = (rows >= 0).nonzero().squeeze(1)
                _crossover(weight, inferior, rows[inferior].long(), case.rule)

    def step(self, case: Case) -> tuple[Tensor, Tensor]:
        importances = self._importances(case.weights)
        donor = torch.full((case.bank.num_filters,), -1, dtype=torch.int32, device=case.bank.device)
        of_layer = case.bank.split(donor)
        for layer, inferior, dominant in _match(case, importances):
            self._cross(case.weights[layer], inferior, dominant, case.rule)
            of_layer[layer][inferior] = dominant.int()
        return torch.cat(importances), donor

    def _importances(self, weights: list[Tensor]) -> list[Tensor]:
        return [_importance(weight) for weight in weights]

    def _cross(self, weight: Tensor, inferior: Tensor, dominant: Tensor, rule: str) -> None:
        _crossover(weight, inferior, dominant, rule)


class CompiledPerLayer(PerLayer):
    """`PerLayer` with its importances and its crossovers through ``torch.compile``.

    Between them the host has to know how many filters each layer replaces, so the step is no single graph. Shapes are
    dynamic in the crossover: one compilation for many layers. Of the operations, only the step is compiled.
    """

    name = "per_layer compiled"
    contracts = True

    def __init__(self) -> None:
        self._compiled_importances = torch.compile(super()._importances)
        self._compiled_cross = torch.compile(_crossover, dynamic=True)

    def _importances(self, weights: list[Tensor]) -> list[Tensor]:
        found: list[Tensor] = self._compiled_importances(weights)
        return found

    def _cross(self, weight: Tensor, inferior: Tensor, dominant: Tensor, rule: str) -> None:
        self._compiled_cross(weight, inferior, dominant, rule)


def _importance(weight: Tensor) -> Tensor:
    if weight.dim() == 1:
        return weight.abs().float()
    return weight.abs().flatten(1).sum(1, dtype=torch.float32) / weight.shape[1]


def _match(case: Case, importances: list[Tensor]) -> list[tuple[int, Tensor, Tensor]]:
    """(layer, inferior rows, their donors) of every layer that has some."""
    thresholds = []
    for group, rate in enumerate(case.rates):
        members = torch.cat([x for x, g in zip(importances, case.groups, strict=True) if g == group])
        thresholds.append(members.kthvalue(math.floor(len(members) * rate) + 1).values)
    counts = [
        torch.stack(((x < thresholds[g]).sum(), (x <= LOCAL_RATIO * x.amax()).sum()))
        for x, g in zip(importances, case.groups, strict=True)
    ]
    counters = case.starvation.tolist()
    matched = []
    for layer, (below, low) in enumerate(torch.stack(counts).tolist()):
        if below == 0:
            continue
        group = case.groups[layer]
        counters[group] = counters[group] + 1 if low == 0 else 0
        if counters[group] >= case.starvation_limit:
            low, counters[group] = 1, 0
        size = len(importances[layer])
        inferior = min(below, low)
        pairs = min(inferior, size - inferior)
        if pairs:
            order = importances[layer].argsort(descending=True, stable=True)
            matched.append((layer, order[size - inferior : size - inferior + pairs], order[:pairs]))
    case.starvation.copy_(torch.tensor(counters, dtype=torch.int32))
    return matched


def _crossover(weight: Tensor, inferior: Tensor, dominant: Tensor, rule: str) -> None:
    q, p = weight[inferior].flatten(2) if weight.dim() > 1 else weight[inferior, None, None], weight[dominant]
    q, p = q.float(), p.view_as(q).float()
    if weight.dim() < 3 or weight.shape[2] == 1:
        norm_q, norm_p = q.abs().sum((1, 2), keepdim=True), p.abs().sum((1, 2), keepdim=True)
        a = norm_q / (norm_q + norm_p)
        a = torch.where(a.isfinite(), a, 1.0)
        new = a * q + (1 - a) * p
    else:
        position = q.abs().argmin(2, keepdim=True)
        small = q.gather(2, position)
        large = p.gather(2, p.abs().argmax(2, keepdim=True))
        if rule == "paper":
            a = small.abs() / (small.abs() + large.abs())
            value = a * small + (1 - a) * large
        else:
            a = small / (small + large)
            value = a * large + (1 - a) * small
        value = torch.where(value.isfinite(), value, small)
        new = q.scatter(2, position, value) if rule == "paper" else torch.where(q == small, value, q)
    weight[inferior] = new.view(-1, *weight.shape[1:]).to(weight.dtype)


def implementations(device: torch.device) -> tuple[list[Implementation], dict[str, str]]:
    """What can be measured on tensors of ``device``, baselines first, and the reason for each backend that cannot."""
    found: list[Implementation] = [PerLayer()]
    skipped = {}
    for name in backends.BACKENDS:
        reason = backends.unavailable(name, device.type)
        if name == "triton" and device.type == "cpu" and reason is None:
            reason = "on CPU tensors Triton only interprets its kernels, for tests"
        if reason:
            skipped[name] = reason
        else:
            found.append(Backend(name))
    return found, skipped
