"""The step of a model whose parameters are spread over the ranks of a group (docs/scaling.md)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

import we_kernels as wk

from ..model.optimizer_state import OptimizerState
from ..model.sharded_state import ShardedState
from ..model.targets import Targets
from ..sharding.gather import gather
from ..sharding.local_part import local_part
from ..sharding.meshes import Spread, placement_of
from ..sharding.placement import Placement
from .device_step import DeviceStep, Outcome
from .inferior_shifts import InferiorShifts
from .options import EvolutionOptions
from .sharded_crossover import ShardedCrossover


class ShardedStep(DeviceStep):
    """Evolves filters that are spread over ranks, with the results of one process that has them all.

    Every rank measures its own filters, one all-gather gives all ranks the same importances, and so the same donors;
    one all-to-all brings donors from other ranks. New weights are made in copies, and a second all-gather tells that
    all ranks have theirs: no weight and no counter is written before, so that a rank that fails leaves the model whole.
    The host waits for the device.

    Args:
        targets, inferior_shifts, options: see `DeviceStep`.
        placement: which rank has which filters.
    """

    def __init__(self, *args: Any, placement: Placement, **options: Any) -> None:
        super().__init__(*args, **options)
        self._placement = placement
        self._check_biases()

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
        selection = self._select_of_all(bank, every, counters, agreed)
        filters = self._placement.most if self._measure_after else 0
        size = filters + (state.size if state else 0)
        crossed: list[ShardedCrossover] = []

        def cross() -> Tensor:
            """float32: importances after the crossover, if asked for, and sums of the optimizer's state."""
            crossed.append(self._cross(bank, selection.donor.cpu()))
            numbers = torch.zeros(size, dtype=torch.float32, device=bank.device)
            if filters:
                after = crossed[0].bank_after()
                measured = self._measure(after, wk.filter_importance(after))
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
        after = self._placement.by_filter(numbers) if filters else None
        return Outcome(every.names, every.sizes, selection, counters, after)

    def preview(self, rates: Sequence[float]) -> Outcome:
        """What `run` would select, of all ranks of the group together; changes nothing."""
        bank, every = self._targets.bank(), self._targets.every_filter()
        self._send(tuple(rates), bank.device)
        counters = self._counters.clone()
        selection = self._select_of_all(bank, every, counters, self._agreed("preview", rates, None))
        return Outcome(every.names, every.sizes, selection, counters, None)

    def _select_of_all(self, bank: wk.FilterBank, every: wk.FilterBank, counters: Tensor, agreed: str) -> wk.Selection:
        measure = partial(self._measured, bank)
        rows = gather(self._placement, measure, self._placement.most, agreed, bank.device)
        return self._match(every, self._placement.by_filter(rows), counters)

    def _measured(self, bank: wk.FilterBank) -> Tensor:
        return self._measure(bank, wk.filter_importance(bank))

    def _check_biases(self) -> None:
        for position, bias in self._biases():
            target = self._targets.items[position]
            name = f"{target.name.rpartition('weight')[0]}bias"
            of_bias = placement_of([Spread(name, bias, 0, True)])
            same = of_bias is not None and of_bias.group == self._placement.group
            if same != self._placement.sharded[position]:
                raise TypeError(
                    f"{name} is not spread over the ranks as {target.name} is, whose rows it follows; shard both or "
                    f"none (fully_shard the module), or pass exclude=[{name.rpartition('.')[0]!r}]"
                )

    def _cross(self, bank: wk.FilterBank, donor: Tensor) -> ShardedCrossover:
        return ShardedCrossover(bank, self._placement, donor, self._crossover, self._local_biases())

    def _local_changes(self, crossed: ShardedCrossover) -> dict[int, Tensor]:
        """Identity of each parameter of which this rank's part changes -> what that will be."""
        biases, changes = dict(self._biases()), {}
        for position, weight, bias in crossed.changes():
            parameter = self._targets.items[position].parameter
            changes[id(parameter)] = weight.reshape(local_part(parameter).shape)
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
