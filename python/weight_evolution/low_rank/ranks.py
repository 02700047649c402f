"""How many ranks each layer keeps."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from we_kernels.checks import check_number

from ..arguments import check_count
from .layers import Layer

PUBLISHED_PRUNE_RATIO = 0.7


def rank_of_ratio(full_rank: int, prune_ratio: float) -> int:
    """``int(n - n * prune_ratio)``, at least 1."""
    return max(1, int(full_rank - full_rank * prune_ratio))


def ranks_from_ratio(layers: Sequence[Layer], prune_ratio: float | Sequence[float]) -> list[int]:
    """One ratio for all layers, or one per layer, in module order.

    Raises:
        TypeError, ValueError: not a ratio in [0, 1), or not one per layer.
    """
    if isinstance(prune_ratio, Sequence) and not isinstance(prune_ratio, str):
        if len(prune_ratio) != len(layers):
            names = ", ".join(layer.name for layer in layers)
            raise ValueError(f"prune_ratio has {len(prune_ratio)} entries for {len(layers)} layers: {names}")
        ratios = [_check_ratio(ratio, f"prune_ratio[{i}]") for i, ratio in enumerate(prune_ratio)]
    else:
        ratios = [_check_ratio(prune_ratio, "prune_ratio")] * len(layers)
    return [rank_of_ratio(layer.full_rank, ratio) for layer, ratio in zip(layers, ratios, strict=True)]


def ranks_from_dict(layers: Sequence[Layer], ranks: Mapping[str, int], skipped: Mapping[str, str]) -> list[int]:
    """The given ranks; a layer without one keeps its full rank.

    Raises:
        TypeError, ValueError: a name is not that of a layer (with the reason if it was skipped), or a rank is not a
            positive integer.
    """
    if not isinstance(ranks, Mapping):
        raise TypeError(f'ranks must be a dict {{"layer name": rank}}, got {type(ranks).__name__}')
    names = {layer.name for layer in layers}
    for name, rank in ranks.items():
        if name not in names:
            why = f"it is skipped: {skipped[name]}" if name in skipped else f"the layers are {', '.join(sorted(names))}"
            raise ValueError(f"ranks: {name!r} is not a layer to project; {why}")
        check_count(rank, f"ranks[{name!r}]", at_least=1)
    return [min(int(ranks.get(layer.name, layer.full_rank)), layer.full_rank) for layer in layers]


def ranks_for_budget(
    layers: Sequence[Layer], energies: Sequence[Sequence[float]], macs: Sequence[int], total: int, budget: float
) -> list[int]:
    """Ranks that keep the most energy while the network costs at most ``budget * total`` multiply-accumulates.

    Greedy: all layers start at rank 1; the rank with the largest share of its layer's energy per multiply-accumulate
    comes next, until nothing fits. Behind the last rank that saves anything comes the layer as it was. Where the best
    uniform prune ratio keeps more, it wins.

    Args:
        energies: per layer its squared singular values, largest first.
        macs: per layer its multiply-accumulates; a layer that was never called costs nothing and stays as it is.
        total: those of the whole network.

    Raises:
        ValueError: not even rank 1 everywhere meets the budget; names the smallest share that can be reached.
    """
    options = [_Options(layer, values, count) for layer, values, count in zip(layers, energies, macs, strict=True)]
    available = int(budget * total) - (total - sum(macs))
    smallest = sum(option.cost(0) for option in options)
    if smallest > available:
        reachable = (total - sum(macs) + smallest) / total
        raise ValueError(
            f"budget={budget} cannot be met: with rank 1 in every layer {_round_up(reachable)} of the MACs remain "
            "(linear=True adds the Linear layers)"
        )
    greedy, uniform = _greedy(options, available), _best_uniform(options, available)
    chosen = max(greedy, uniform, key=lambda picks: _energy(options, picks))
    return [option.ranks[pick] for option, pick in zip(options, chosen, strict=True)]


def energies(matrix: Tensor) -> list[float]:
    """Squared singular values of a float64 matrix, largest first: eigenvalues of the smaller Gram matrix."""
    matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    values: list[float] = torch.linalg.eigvalsh(matrix @ matrix.T).clamp(min=0).flip(0).tolist()
    return values


class _Options:
    """The ranks that one layer may have: those that save something, then its full rank, the original."""

    def __init__(self, layer: Layer, energies: Sequence[float], macs: int) -> None:
        positions = macs // layer.cost
        n = layer.full_rank
        self.full_rank = n
        self.ranks = [rank for rank in range(1, n) if layer.saves(rank)] if positions else []
        self._costs = [positions * rank * layer.cost_of_rank for rank in self.ranks] + [macs]
        total = sum(energies)
        self._kept = [0.0]
        for energy in energies:
            self._kept.append(self._kept[-1] + (energy / total if total > 0 else 0.0))
        self.ranks.append(n)

    def cost(self, pick: int) -> int:
        return self._costs[pick]

    def kept(self, pick: int) -> float:
        return self._kept[self.ranks[pick]]

    def nearest(self, rank: int) -> int:
        """The option of this rank; the original where that would not save anything."""
        return min(rank, len(self.ranks)) - 1


def _greedy(options: Sequence[_Options], available: int) -> list[int]:
    picks = [0] * len(options)
    used = sum(option.cost(0) for option in options)
    heap: list[tuple[float, int]] = []

    def offer(index: int) -> None:
        option, pick = options[index], picks[index]
        if pick + 1 < len(option.ranks):
            gain = option.kept(pick + 1) - option.kept(pick)
            heapq.heappush(heap, (-gain / max(option.cost(pick + 1) - option.cost(pick), 1), index))

    for index in range(len(options)):
        offer(index)
    while heap:
        _, index = heapq.heappop(heap)
        extra = options[index].cost(picks[index] + 1) - options[index].cost(picks[index])
        if used + extra <= available:
            picks[index] += 1
            used += extra
            offer(index)
    return picks


def _best_uniform(options: Sequence[_Options], available: int) -> list[int]:
    """The smallest prune ratio, the same for all layers, that fits, by bisection."""

    def picks_at(ratio: float) -> list[int]:
        return [option.nearest(rank_of_ratio(option.full_rank, ratio)) for option in options]

    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if sum(option.cost(pick) for option, pick in zip(options, picks_at(middle), strict=True)) <= available:
            high = middle
        else:
            low = middle
    return picks_at(high)


def _energy(options: Sequence[_Options], picks: Sequence[int]) -> float:
    return sum(option.kept(pick) for option, pick in zip(options, picks, strict=True))


def _round_up(share: float) -> str:
    # The number printed must be a budget that works.
    return f"{-(-share * 10000 // 1) / 10000:.4f}"


def _check_ratio(value: float, name: str) -> float:
    ratio = check_number(value, name)
    if not 0 <= ratio < 1:
        raise ValueError(f"{name} must be in [0, 1), got {ratio}")
    return ratio
