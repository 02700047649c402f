"""The step of a model whose parameters are spread over the ranks of a group (docs/scaling.md)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

import we_kernels as wk

from ..model.optimizer_state import OptimizerState
from ..model.sharded_state import ShardedState
from ..model.targets import Targets
from ..sharding.gather import gather
from ..sharding.local_part import local_part
from ..sharding.placement import Placement
from .device_step import DeviceStep, Outcome
from .inferior_shifts import InferiorShifts
from .options import EvolutionOptions
from .partial_filters import Norms, with_one_kernel
from .sharded_crossover import ShardedCrossover


class _Found(NamedTuple):
    """What a step selected."""

    selection: wk.Selection
    measured: Tensor
    """float32 [F]: importances, of partial filters L1 norms."""


class ShardedStep(DeviceStep):
    """Evolves filters that are spread over ranks, with the results of one process that has them all.

    Every rank measures its own filters, one all-gather gives all ranks the same importances, and so the same donors;
    one all-to-all brings donors from other ranks. Of weights that are spread by their input channels every rank has a
    part of all filters: what it measures of them is summed, in another order than in one process, and donors do not
    travel. New weights are made in copies, and a second all-gather tells that all ranks have theirs: no weight and no
    counter is written before, so that a rank that fails leaves the model whole. The host waits for the device.

    Args:
        targets, inferior_shifts, options: see `DeviceStep`.
        placement: which rank has which filters.
    """

    def __init__(self, *args: Any, placement: Placement, **options: Any) -> None:
        super().__init__(*args, **options)
        self._placement = placement
        self._kernels = _kernels(self._targets, placement)
        self._check_importance()

    def run(self, rates: Sequence[float]) -> Outcome:
        """One step, of all ranks of the group together.

        Raises:
            ExchangeError: another rank failed; nothing was changed.
        """
        bank, every = self._targets.bank(), self._targets.every_filter()
        self._send(tuple(rates), bank.device)
        counters = self._counters.clone()
        state = self._optimizer_state and ShardedState(self._optimizer_state, self._parameters())
        agreed = self._agreed("step", rates, state)
        found = self._select_of_all(bank, every, counters, agreed)
        filters = self._placement.most if self._measure_after else 0
        size = filters + (state.size if state else 0)
        crossed: list[ShardedCrossover] = []

        def cross() -> Tensor:
            """float32: importances after the crossover, if asked for, and sums of the optimizer's state."""
            crossed.append(self._cross(bank, found))
            numbers = torch.zeros(size, dtype=torch.float32, device=bank.device)
            if filters:
                measured = self._measured(crossed[0].bank_after())
                numbers[: len(measured)] = measured
            if state:
                numbers[filters:] = state.sums(self._local_changes(crossed[0]))
            return numbers

        numbers = gather(self._placement, cross, size, agreed, bank.device)
        if state:
            state.write_(numbers[:, filters:])
        crossed[0].write_()
        increment_version(self._parameters())
        self._counters.copy_(counters)
        after = self._importance_of(self._placement.by_filter(numbers)) if filters else None
        return Outcome(every.names, every.sizes, found.selection, counters, after)

    def preview(self, rates: Sequence[float]) -> Outcome:
        """What `run` would select, of all ranks of the group together; changes nothing."""
        bank, every = self._targets.bank(), self._targets.every_filter()
        self._send(tuple(rates), bank.device)
        counters = self._counters.clone()
        found = self._select_of_all(bank, every, counters, self._agreed("preview", rates, None))
        return Outcome(every.names, every.sizes, found.selection, counters, None)

    def _select_of_all(self, bank: wk.FilterBank, every: wk.FilterBank, counters: Tensor, agreed: str) -> _Found:
        measure = partial(self._measured, bank)
        rows = gather(self._placement, measure, self._placement.most, agreed, bank.device)
        measured = self._placement.by_filter(rows)
        return _Found(self._match(every, self._importance_of(measured), counters), measured)

    def _measured(self, bank: wk.FilterBank) -> Tensor:
        """float32 [f]: importances of this rank's filters, of partial ones L1 norms of its part."""
        if not any(self._placement.partial):
            return self._measure(bank, wk.filter_importance(bank))
        return wk.filter_importance(with_one_kernel(bank, self._placement.partial))

    def _importance_of(self, measured: Tensor) -> Tensor:
        """float32 [F]: importances of what `_measured` gave on all ranks."""
        return measured / self._kernels.to(measured.device)

    def _partial(self) -> list[int]:
        """Positions of the weights of partial filters among the targets."""
        return [position for position, split in enumerate(self._placement.partial) if split]

    def _check_importance(self) -> None:
        for position in self._partial() if self._importance is not None else ():
            name = self._targets.items[position].name
            raise TypeError(
                f"importance= a callable needs whole filters, of which no rank has any of {name} (a DTensor sharded "
                f"along its input channels); leave importance= out, shard along the filters, or pass "
                f"exclude=[{name.rpartition('.')[0]!r}]"
            )

    def _cross(self, bank: wk.FilterBank, found: _Found) -> ShardedCrossover:
        l1, importance = (of.split(self._placement.sizes) for of in (found.measured, found.selection.importance))
        norms = {position: Norms(l1[position], importance[position]) for position in self._partial()}
        donor = found.selection.donor.cpu()
        return ShardedCrossover(bank, self._placement, donor, self._crossover, self._local_biases(), norms)

    def _local_changes(self, crossed: ShardedCrossover) -> dict[int, Tensor]:
        """Identity of each parameter of which this rank's part changes -> what that will be."""
        biases, changes = dict(self._biases()), {}
        for position, weight, bias in crossed.changes():
            parameter = self._targets.items[position].parameter
            held = local_part(parameter)
            if held.numel():  # else it has a stand-in in the bank
                changes[id(parameter)] = weight.reshape(held.shape)
            if bias is not None:
                changes[id(biases[position])] = bias
        return changes

    def _local_biases(self) -> dict[int, Tensor]:
        return {position: local_part(bias) for position, bias in self._biases()}

    def _agreed(self, what: str, rates: Sequence[float], state: ShardedState | None) -> str:
        return (
            f"{what} with rates {list(rates)}, counters {self.counters}, crossover {self._crossover!r}, "
            f"measure_after={self._measure_after}, {state.size if state else 0} sums of optimizer state"
        )


def _kernels(targets: Targets, placement: Placement) -> Tensor:
    """float32 [F], on the CPU: of each partial filter how many kernels it has on all ranks together, 1 for others."""
    counts = [1] * len(targets.items)
    for position, spread in enumerate(target.spread for target in targets.items):
        if placement.partial[position] and spread.channel_dim is not None:
            counts[position] = spread.parameter.shape[spread.channel_dim]
    sizes = torch.tensor(placement.sizes, device="cpu")
    return torch.tensor(counts, dtype=torch.float32, device="cpu").repeat_interleave(sizes)


def step_for(
    targets: Targets,
    inferior_shifts: InferiorShifts | None,
    options: EvolutionOptions,
    *,
    measure_after: bool,
    optimizer_state: OptimizerState | None,
    cuda_graph: bool,
) -> DeviceStep:
    """The `DeviceStep` or `ShardedStep` of these targets.

    Raises:
        TypeError, ValueError: an option that DTensors rule out; says what to do.
    """
    make = DeviceStep if targets.placement is None else partial(ShardedStep, placement=targets.placement)
    if targets.distributed and cuda_graph:
        raise ValueError(
            "cuda_graph=True is not possible with DTensors, whose step waits for other ranks; leave it out"
        )
    return make(
        targets,
        inferior_shifts,
        options,
        measure_after=measure_after,
        optimizer_state=optimizer_state,
        cuda_graph=cuda_graph,
    )
