"""`Shards`: the ranks over which a model is spread as DTensors, and the row scales that they share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..model.wrappers import joined
from ..sharding.failures import communication
from ..sharding.gather import as_float32, as_float64, gather
from ..sharding.local_part import is_distributed, local_part
from ..sharding.meshes import Spread, placement_of
from ..sharding.placement import Placement
from .layers import Layers, changed, one_device
from .rectification import Rectification, row_scale
from .replicas import Replicas


class Shards:
    """Which rank has which rows of the layers, and of the BatchNorms behind them. All methods are collective.

    Args:
        model: some of its parameters are DTensors.
        layers: those that can be projected.
        rectification: the BatchNorms behind them.

    Raises:
        TypeError, ValueError: a parameter is spread in a way that cannot be worked with; names it, and says how to go
            on.
    """

    @torch.no_grad()
    def __init__(self, model: nn.Module, layers: Layers, rectification: Rectification) -> None:
        self._layers, self._rectification = layers, rectification
        weights = [Spread(joined(layer.name, "weight"), layer.weight, 0, True) for layer in layers]
        vectors = [Spread(name, vector, 0, True) for name, vector in self._vectors()]
        try:
            found = placement_of([*weights, *vectors])
        except TypeError as error:
            raise TypeError(f"{error} (a BatchNorm: with batch_norm_pairs=, None for its layer)") from None
        groups = _groups(found, [*(layer.weight for layer in layers), *model.parameters()])
        sharded = found.sharded if found else (False,) * (len(weights) + len(vectors))
        self.placement = Placement(groups[0], [layer.rows for layer in layers], sharded[: len(weights)])
        """Which rank has which rows of the layers, in their order."""
        self._of_vectors = Placement(groups[0], [len(v.parameter) for v in vectors], sharded[len(weights) :])
        self._other_replicas = [Placement(group, (), ()) for group in groups[1:]]
        self._first_of = [Replicas(group) for group in groups]

    @property
    def device(self) -> torch.device:
        """Of the layers."""
        return one_device(self._layers.items)

    def scales(self, agreed: str, check: Callable[[], None] = lambda: None) -> dict[str, Tensor]:
        """Layer name -> [N], what the BatchNorm behind it multiplies each row by, with the first rank's statistics.

        Args:
            agreed: what must be the same on all ranks, for the error.
            check: if it raises, so do all ranks.

        Raises:
            ExchangeError: another rank failed, did not answer in time, or has something else in ``agreed``.
            ValueError: a BatchNorm is not what it was.
        """
        split = self._of_vectors.sharded
        own: list[Tensor] = []

        def sharded_vectors() -> Tensor:
            check()
            own.extend(self._own_vectors())
            none = torch.empty(0, dtype=torch.float64, device=self.device)
            return as_float32(torch.cat([none, *(vector for vector, part in zip(own, split, strict=True) if part)]))

        sizes = [size for size, part in zip(self._of_vectors.sizes, split, strict=True) if part]
        placement = Placement(self.placement.group, sizes, [True] * len(sizes))
        rows = self.agree(sharded_vectors, 2 * placement.most, agreed)
        gathered = iter(placement.by_filter(as_float64(rows)).split(sizes))
        if not own:
            return {}
        values = torch.cat([next(gathered) if part else vector for vector, part in zip(own, split, strict=True)])
        self.take_([values])
        vectors = values.split(list(self._of_vectors.sizes))
        pairs = [(layer, norm) for layer, norm in self._rectification.pairs_of(self._layers.items) if norm is not None]
        return {
            layer.name: row_scale(layer, variance, norm.eps, gamma)
            for (layer, norm), variance, gamma in zip(pairs, vectors[::2], vectors[1::2], strict=True)
        }

    def agree(self, compute: Callable[[], Tensor], size: int, agreed: str) -> Tensor:
        """float32 [ranks of one replica, size]: `gather`, where ranks of all replicas (HSDP) fail together."""
        found: list[Tensor] = []

        def tell() -> None:
            found.append(gather(self.placement, compute, size, agreed, self.device))

        for placement in self._other_replicas:
            tell = partial(_tell, placement, tell, agreed, self.device)
        tell()
        return found[0]

    def take_(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors with those of the first rank.

        Raises:
            ExchangeError: another rank did not answer in time.
        """
        _take_(self._first_of, tensors)

    def take_of_first_replica_(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors with those of the first of the ranks that have the same rows (HSDP)."""
        _take_(self._first_of[1:], tensors)

    def ranks_of_first(self, ranks: list[int]) -> list[int]:
        """The first rank's list."""
        for replicas in self._first_of:
            with communication():
                ranks = replicas.ranks_of_first(ranks)
        return ranks

    def _vectors(self) -> Iterable[tuple[str, Tensor]]:
        """Of each BatchNorm behind a layer the running variance and the weight (ones where it has none)."""
        for layer, norm in self._rectification.pairs_of(self._layers.items):
            if norm is not None:
                name, variance = str(self._rectification.pairs.names[layer.name]), norm.running_var
                assert variance is not None
                yield joined(name, "running_var"), variance
                yield joined(name, "weight"), torch.ones_like(variance) if norm.weight is None else norm.weight

    def _own_vectors(self) -> list[Tensor]:
        """float64, this rank's part of each."""
        own = []
        for (name, vector), rows in zip(self._vectors(), self._of_vectors.rows_on(self._of_vectors.rank), strict=True):
            held = local_part(vector.detach())
            if len(held) != rows:
                raise changed(name, f"this rank holds {len(held)} elements of it, held {rows}")
            own.append(held.to(self.device, torch.float64))
        return own


def _take_(first_of: Sequence[Replicas], tensors: Sequence[Tensor]) -> None:
    for replicas in first_of:
        with communication():
            replicas.take_([tensor for tensor in tensors if tensor.numel()])


def _tell(placement: Placement, tell: Callable[[], None], agreed: str, device: torch.device) -> None:
    """Fail with the ranks of the other replicas, or go on with them."""

    def compute() -> Tensor:
        tell()
        return torch.empty(0, dtype=torch.float32, device=device)

    gather(placement, compute, 0, agreed, device)


def _groups(found: Placement | None, parameters: Sequence[Tensor]) -> list[dist.ProcessGroup]:
    """The group over which rows are spread, then those of ranks that have the same rows."""
    distributed: list[Any] = [parameter for parameter in parameters if is_distributed(parameter)]
    meshes = [parameter.device_mesh for parameter in distributed]
    groups = [[mesh.get_group(dim) for dim in range(mesh.ndim)] for mesh in meshes]
    if found is not None:
        mesh = next(mesh for mesh, of_mesh in zip(meshes, groups, strict=True) if found.group in of_mesh)
    else:
        mesh = meshes[0]
    others = [mesh.get_group(dim) for dim in range(mesh.ndim) if mesh.size(dim) > 1]
    if found is None:
        return others or [mesh.get_group(0)]
    return [found.group, *(group for group in others if group != found.group)]
