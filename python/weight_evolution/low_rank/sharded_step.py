"""The projection of a model whose parameters are spread over the ranks of a group (docs/scaling.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

import we_kernels as wk

from ..model.optimizer_state import OptimizerState
from ..model.sharded_state import ShardedState
from ..model.writing import overwrite_
from ..sharding.attempts import Attempts
from ..sharding.exchange import exchange
from ..sharding.gather import as_float32, as_float64
from ..sharding.local_part import local_part
from .layers import Layer, Layers, changed
from .report import Projected
from .sharded_layer import ShardedLayer
from .shards import Shards

_NUMBERS = 4
"""float64 numbers of each layer that all ranks get: energy before and kept, whether it was skipped, and whether the
rows of a rank are finite."""


class ShardedStep:
    """Projects layers that are spread over ranks; each is the work of one of them, its owner.

    The ranks send the owner their rows of a layer, or Gram matrices of them, in one all-to-all; the new rows, or the
    basis to project them onto, come back in a second. New weights are made in copies, and an all-gather tells that all
    ranks have theirs: no weight, basis or optimizer state is written before, so that a rank that fails leaves the model
    whole. The host waits for the device.

    Args:
        shards: which rank has which rows.
        layers: those that can be projected.
        energy_transfer: of `LowRankProjection`.
        optimizer_state: of `LowRankProjection`.
    """

    def __init__(
        self, shards: Shards, layers: Layers, *, energy_transfer: bool, optimizer_state: OptimizerState | None
    ) -> None:
        self._shards = shards
        self._places = {layer.name: i for i, layer in enumerate(layers)}
        self._energy_transfer, self._optimizer_state = energy_transfer, optimizer_state

    def run(self, choose: Callable[[], list[tuple[Layer, int]]], bases: wk.LowRankBases, steps: int) -> Projected:
        """One step, of all ranks together.

        Args:
            choose: looks at the model, and gives the layers to project with their ranks.
            bases: the same on all ranks.
            steps: so many were made before.

        Raises:
            ExchangeError: another rank failed; nothing was changed.
        """
        attempt = Attempts()
        chosen: list[tuple[Layer, int]] = attempt(choose, list)
        held: list[Tensor] = attempt(lambda: [self._held(layer) for layer, _ in chosen], list)
        state = attempt(lambda: self._state([layer.weight for layer, _ in chosen]), lambda: None)
        sums = state.size if state else 0
        agreed = (
            f"projection {steps} of {[(layer.name, rank) for layer, rank in chosen]}, "
            f"energy_transfer={self._energy_transfer}, {sums} sums of optimizer state"
        )
        scales = self._shards.scales(agreed, attempt.check)
        layers = self._plan(chosen, held, scales)
        if not layers:
            return Projected([], [], None, [])
        numbers = torch.zeros((len(layers), _NUMBERS), dtype=torch.float64, device=self._shards.device)
        made = self._project(layers, bases, numbers, attempt)

        def tell() -> Tensor:
            attempt.check()
            own = as_float32(numbers)
            if state is None:
                return own
            changes = {id(one.layer.weight): new for one, (new, _) in zip(layers, made, strict=True)}
            return torch.cat([own, state.sums(changes).to(own.device)])

        rows = self._shards.agree(tell, 2 * numbers.numel() + sums, agreed)
        of_layers, of_state = rows.split([2 * numbers.numel(), sums], dim=1)
        result, finite = _result(layers, as_float64(of_layers).view(-1, *numbers.shape))
        if result.energy_before.isfinite().all():
            if state is not None:
                state.write_(of_state)
            for one, (new, basis) in zip(layers, made, strict=True):
                overwrite_(one.held, new)
                bases.tensors[one.position] = basis
            increment_version([one.layer.weight for one in layers])
        return Projected([one.layer for one in layers], [one.rank for one in layers], result, finite)

    def _held(self, layer: Layer) -> Tensor:
        """This rank's rows of a layer."""
        held, placement = local_part(layer.weight.detach()), self._shards.placement
        rows = placement.rows_on(placement.rank)[self._places[layer.name]]
        if len(held) != rows:
            raise changed(layer.name, f"this rank holds {len(held)} rows of its weight, held {rows}")
        return held

    def _state(self, weights: Sequence[Tensor]) -> ShardedState | None:
        if self._optimizer_state is None or not weights:
            return None
        self._optimizer_state.check_trains(weights)
        return ShardedState(self._optimizer_state, weights)

    def _plan(
        self, chosen: Sequence[tuple[Layer, int]], held: Sequence[Tensor], scales: Mapping[str, Tensor]
    ) -> list[ShardedLayer]:
        """The layers with their owners: the one with the most work goes to the rank that has the least so far."""
        placement = self._shards.placement
        rows = list(zip(*(placement.rows_on(rank) for rank in range(placement.ranks)), strict=True))
        costs = [layer.cost * layer.full_rank for layer, _ in chosen]
        work = [0] * placement.ranks
        planned = []
        for i in sorted(range(len(chosen)), key=lambda i: -costs[i]):
            (layer, rank), place = chosen[i], self._places[chosen[i][0].name]
            sharded = placement.sharded[place]
            owner = work.index(min(work)) if sharded else 0
            work[owner] += costs[i]
            planned.append(
                ShardedLayer(
                    position=i,
                    layer=layer,
                    rank=rank,
                    held=held[i],
                    sharded=sharded,
                    rows=rows[place],
                    me=placement.rank,
                    owner=owner,
                    scale=scales.get(layer.name),
                )
            )
        return sorted(planned, key=lambda one: one.position)

    def _project(
        self, layers: Sequence[ShardedLayer], bases: wk.LowRankBases, numbers: Tensor, attempt: Attempts
    ) -> list[tuple[Tensor, Tensor]]:
        """For each layer this rank's new rows, and the basis; fills what this rank knows of ``numbers`` [L, 4]."""
        placement = self._shards.placement
        everyone, me = range(placement.ranks), placement.rank
        owned = [[one for one in layers if one.sharded and one.owner == rank] for rank in everyone]
        sent = attempt(
            lambda: [[one.to_owner() for one in of_rank] for of_rank in owned],
            lambda: [[one.like_to_owner(me) for one in of_rank] for of_rank in owned],
        )
        parts = [[one.like_to_owner(rank) for one in owned[me]] for rank in everyone]
        exchange(placement, sent, parts, numbers.device)

        solved: dict[int, tuple[Tensor, Tensor]] = attempt(
            lambda: self._solve(layers, owned[me], parts, bases, numbers), dict
        )
        sent = attempt(
            lambda: [
                [part for one in owned[me] for part in one.answer(rank, *solved[one.position])] for rank in everyone
            ],
            lambda: [[part for one in owned[me] for part in one.like_answer(rank)] for rank in everyone],
        )
        answers = [one.like_answer(me) for one in layers]
        expected = [[part for one in of_rank for part in answers[one.position]] for of_rank in owned]
        exchange(placement, sent, expected, numbers.device)

        whole = [one.position for one in layers if not one.sharded]
        answers = [solved[i] if i in whole and i in solved else answer for i, answer in enumerate(answers)]
        self._shards.take_([part for i in whole for part in answers[i]])
        made = attempt(
            lambda: [(one.rows_of(*answer), answer[1]) for one, answer in zip(layers, answers, strict=True)],
            lambda: [(torch.zeros_like(one.held), one.blank_basis()) for one in layers],
        )
        self._shards.take_of_first_replica_(
            [numbers, *(part for i, pair in enumerate(made) if i not in whole for part in pair)]
        )
        return made

    def _solve(
        self,
        layers: Sequence[ShardedLayer],
        owned: Sequence[ShardedLayer],
        parts: Sequence[Sequence[Tensor]],
        bases: wk.LowRankBases,
        numbers: Tensor,
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """By position, of the layers that this rank projects: the new weight (or the factor), and the basis.

        Args:
            layers: all of them.
            owned: those of whose rows or Gram matrices every rank has sent its part.
            parts: by rank, then by layer.
            bases: not changed.
            numbers: [L, 4], filled.
        """
        numbers[:, 3] = torch.stack([one.held.isfinite().all() for one in layers])
        of_layer = {one.position: [of_rank[k] for of_rank in parts] for k, one in enumerate(owned)}
        solved = {}
        for one in owned:
            if one.by_gram:
                found = one.solve(of_layer[one.position], energy_transfer=self._energy_transfer)
                numbers[one.position, :3] = numbers.new_tensor(found[:3])
                solved[one.position] = found.factor, found.basis
        whole = [one for one in layers if one.mine and not one.by_gram]
        if whole:
            weights = [torch.cat(of_layer[one.position]) if one.sharded else one.held.clone() for one in whole]
            kept = wk.LowRankBases()
            kept.load_state_dict(
                {str(k): bases.tensors[one.position] for k, one in enumerate(whole) if one.position in bases.tensors}
            )
            result = wk.project_low_rank_(
                weights,
                [one.rank for one in whole],
                [one.scale for one in whole],
                bases=kept,
                energy_transfer=self._energy_transfer,
            )
            numbers[[one.position for one in whole], :3] = torch.stack([values.double() for values in result], 1)
            solved |= {one.position: (weights[k], kept.tensors[k]) for k, one in enumerate(whole)}
        return solved


def _result(layers: Sequence[ShardedLayer], numbers: Tensor) -> tuple[wk.LowRankResult, list[bool]]:
    """Of the numbers of all ranks [ranks, L, 4]; and whether each weight is finite."""
    own = numbers[[one.owner for one in layers], list(range(len(layers)))]
    energy, kept, skipped, finite = own.unbind(1)
    sharded = torch.tensor([one.sharded for one in layers], device=own.device)
    good = torch.where(sharded, numbers[:, :, 3].amin(0), finite).bool().tolist()
    if energy.isfinite().all():
        return wk.LowRankResult(energy, kept, skipped.bool()), good
    return wk.LowRankResult(energy, energy.clone(), torch.ones_like(energy, dtype=torch.bool)), good
