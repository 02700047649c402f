"""Which ways of spreading a parameter over ranks can be worked with, and the group of those ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch.distributed as dist
from torch import Tensor

from .local_part import is_distributed, local_part
from .placement import Placement


class Spread(NamedTuple):
    """A parameter that may be a DTensor."""

    name: str
    parameter: Tensor
    filter_dim: int
    """The dimension along which its filters lie."""
    whole_filters: bool
    """Whether a rank must have the filters that it has as a whole, or parts of them will do."""
    channel_dim: int | None = None
    """The dimension of the input channels, if a rank may have some of those of all filters instead."""
    instead: str = ""
    """What to do with a parameter that is refused, for messages; to exclude its module when left out."""


def placement_of(spreads: Sequence[Spread]) -> Placement | None:
    """Which rank has which filters of these parameters; None if every rank has all.

    Raises:
        TypeError: a parameter is spread in another way than by its filters (or input channels, where those will do);
            names it, and says how to go on.
        ValueError: two are spread over different ranks.
    """
    shards = [_shard_of(spread) for spread in spreads]
    first: Spread | None = None
    group: dist.ProcessGroup | None = None
    for spread, shard in zip(spreads, shards, strict=True):
        if shard is None:
            continue
        own_group = _mesh(spread).get_group(shard.mesh_dim)
        if first is None:
            first, group = spread, own_group
        elif own_group != group:
            raise ValueError(
                f"{spread.name} is sharded over other ranks than {first.name}, and all that is compared must be on the "
                "same; give fully_shard one mesh for all, or make one WeightEvolution (UnitReactivation) with include= "
                "for each"
            )
    if group is None:
        return None
    sizes = [spread.parameter.shape[spread.filter_dim] for spread in spreads]
    placement = Placement(
        group,
        sizes,
        [shard is not None and shard.dim == spread.filter_dim for spread, shard in zip(spreads, shards, strict=True)],
        [shard is not None and shard.dim != spread.filter_dim for spread, shard in zip(spreads, shards, strict=True)],
    )
    for spread, rows in zip(spreads, placement.rows_on(placement.rank), strict=True):
        held = local_part(spread.parameter).shape[spread.filter_dim]
        if held != rows:
            raise ValueError(
                f"{spread.name}: this rank holds {held} of {spread.parameter.shape[spread.filter_dim]} rows, where "
                f"torch.chunk gives rank {placement.rank} of {placement.ranks} {rows}; shard it with fully_shard or "
                "distribute_tensor"
            )
    return placement


class _Shard(NamedTuple):
    """How a parameter is spread."""

    mesh_dim: int
    dim: int
    """Of the parameter."""


def _shard_of(spread: Spread) -> _Shard | None:
    """None where every rank has all filters, be it only a part of each where parts will do."""
    if not is_distributed(spread.parameter):
        return None
    mesh, found = _mesh(spread), []
    for mesh_dim, kind in enumerate(_placements(spread)):
        if kind.is_replicate() or (mesh.size(mesh_dim) == 1 and not kind.is_partial()):
            continue
        if type(kind).__name__ == "Shard" and kind.dim != spread.filter_dim and not spread.whole_filters:
            continue
        found.append((mesh_dim, kind))
    if len(found) > 1:
        raise TypeError(
            f"{spread.name} is a DTensor sharded along {len(found)} dimensions of its mesh, where one can be worked "
            f"with; replicate it along the others (HSDP), or {_left_out(spread)}"
        )
    dims = [spread.filter_dim] + ([] if spread.channel_dim is None else [spread.channel_dim])
    for _, kind in found:
        if type(kind).__name__ != "Shard" or kind.dim not in dims:
            possible = ", ".join(f"Shard({dim})" for dim in sorted(dims))
            raise TypeError(
                f"{spread.name} is a DTensor placed as {kind!r}, of which no rank has whole "
                f"{'filters' if spread.channel_dim is None else 'filters or kernels'}; they can be worked with as "
                f"{possible} or Replicate() (shard_placement_fn= and ignored_params= of fully_shard, "
                f"ColwiseParallel), else {_left_out(spread)}"
            )
    if local_part(spread.parameter).device.type not in (mesh.device_type, "meta"):
        raise TypeError(
            f"{spread.name} is offloaded to the CPU (CPUOffloadPolicy), where its group on {mesh.device_type} cannot "
            f"exchange it; leave offload_policy= out, or {_left_out(spread)}"
        )
    return _Shard(found[0][0], found[0][1].dim) if found else None


def _left_out(spread: Spread) -> str:
    return spread.instead or f"leave it out with exclude=[{spread.name.rpartition('.')[0]!r}]"


def _mesh(spread: Spread) -> Any:
    distributed: Any = spread.parameter
    return distributed.device_mesh


def _placements(spread: Spread) -> Any:
    distributed: Any = spread.parameter
    return distributed.placements
