"""Sharded networks side by side: every rank has a part of each, so no weights travel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import we_kernels as wk

from ..sharding.local_part import is_distributed, reshard
from .exchange import Exchange, check_group
from .network import Network
from .sharded_network import ShardedNetwork


class SideBySide(Exchange):
    """Networks of which each is spread over all ranks of the group, all in the same way."""

    def __init__(self, group: dist.ProcessGroup, networks: int) -> None:
        super().__init__(group)
        self._networks = networks

    def ranks_of(self, networks: Sequence[Network], models: Sequence[nn.Module]) -> list[int]:
        """All, unless the networks are not spread alike; see `Exchange.ranks_of`."""
        sharded = {i: network for i, network in enumerate(networks) if isinstance(network, ShardedNetwork)}
        if sharded:
            first = min(sharded)
            name = f"models[{first}].{sharded[first].first_sharded}"
            for i in range(len(networks)):
                self._check(name, sharded[first].mesh, f"models[{i}]", sharded.get(i))
        return list(range(self.size))

    def arrange(self, members: Sequence[Sequence[int]]) -> None:
        """Every rank has a part of each; see `Exchange.arrange`."""
        self.own = list(range(self._networks))
        self.members = [list(members[0])] * self._networks

    def blend(self, networks: Sequence[Network], coefficients: Sequence[Mapping[str, Tensor]]) -> list[list[Tensor]]:
        """Without the other ranks; see `Exchange.blend`."""
        copies = [
            [part.tensor.clone(memory_format=torch.contiguous_format) for part in network.parts.items]
            for network in networks
        ]
        banks = [network.bank_of(own) for network, own in zip(networks, copies, strict=True)]
        if len(banks[0]):
            vectors = [n.vector(own, bank) for n, own, bank in zip(networks, coefficients, banks, strict=True)]
            wk.blend_ring_(banks, vectors, per=networks[0].per)
        return copies

    def _check(self, name: str, mesh: Any, other: str, network: ShardedNetwork | None) -> None:
        """Whether another network is spread as that which has this parameter on this mesh, and over this group."""
        if network is None:
            raise ValueError(
                f"{name} is a DTensor, but of {other} nothing that is grafted is; shard all networks over one mesh, or "
                "none of them"
            )
        if not torch.equal(network.mesh.mesh, mesh.mesh):
            raise ValueError(
                f"{other}.{network.first_sharded} is sharded over {network.mesh}, {name} over {mesh}; shard all "
                "networks of a list over one mesh, or give each ranks of its own, which then make FilterGrafting(model)"
            )
        ranks, group = sorted(mesh.mesh.flatten().tolist()), sorted(dist.get_process_group_ranks(self.group))
        if ranks != group:
            raise ValueError(
                f"{name} is sharded over the ranks {ranks}, the group has {group}; pass process_group=, a group of "
                "just the ranks of the mesh"
            )


def group_of(models: Sequence[nn.Module], group: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
    """The group over which models in one process are sharded; None if this rank has no part of a sharded one.

    Args:
        models: perhaps of other types.
        group: what the user gave; None: that of a mesh of one dimension, else the default group.

    Raises:
        TypeError, ValueError: the models are whole, and a group was given; or what `check_group` raises.
    """
    for model in models:
        for tensor in _tensors(model):
            if is_distributed(tensor) and (mesh := tensor.device_mesh).get_coordinate() is not None:
                return mesh.get_group() if group is None and mesh.ndim == 1 else check_group(group)
    if group is not None:
        raise ValueError("process_group is for one model per rank, or sharded ones; pass that model alone")
    return None


def _tensors(model: nn.Module) -> list[Any]:
    if not isinstance(model, nn.Module):
        return []
    reshard(model)
    return [*model.parameters(), *model.buffers()]
