"""The ring over torch.distributed: who the neighbours are, and how flat buffers go from one to the next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import we_kernels as wk

from ..model.wrappers import data_parallel_around
from .exchange import Exchange
from .network import Network
from .sharded_network import ShardedNetwork

CHUNK_BYTES = 1 << 20
"""Tensors are sent together until they are so large; what a rank blends while the next ones travel."""
_ALIGNMENT = 16


class Ring(Exchange):
    """Networks on the ranks of a group, each on as many; one rank sends to that of the same position in the next."""

    def __init__(self, group: dist.ProcessGroup, ranks_per_network: int | None) -> None:
        super().__init__(group)
        self._ranks_per_network = ranks_per_network

    def ranks_of(self, networks: Sequence[Network], models: Sequence[nn.Module]) -> list[int]:
        """Those of the mesh of the one network here, or consecutive ones; see `Exchange.ranks_of`."""
        (network,), (model,) = networks, models
        if isinstance(network, ShardedNetwork):
            return self._ranks_of_mesh(network.mesh)
        count = 1 if self._ranks_per_network is None else self._ranks_per_network
        first = self.rank // count * count
        members = list(range(first, first + count))
        own = [self._global(rank) for rank in members if rank < self.size]
        for wrapper in data_parallel_around(model):
            if (replicas := dist.get_process_group_ranks(wrapper.process_group)) != own:
                raise ValueError(
                    f"the model is in DistributedDataParallel, whose ranks {replicas} hold one network; pass "
                    f"ranks_per_network={len(replicas)} and a process_group in which these ranks come one after the "
                    f"other, followed by those of the next network (now the ranks {own} would be one)"
                )
        return members

    def arrange(self, members: Sequence[Sequence[int]]) -> None:
        each = len(members[0])
        if self.size % each:
            raise ValueError(f"ranks_per_network={each} does not divide the {self.size} ranks of the process group")
        self.members = sorted(map(list, set(map(tuple, members))), key=min)
        if sorted(rank for ranks in self.members for rank in ranks) != list(range(self.size)):
            raise ValueError(
                f"the networks are on the ranks {self.members} of the process group, of which each must be in one; "
                "shard each network over a mesh of its own ranks"
            )
        if len(self.members) < 2:
            raise ValueError(
                f"grafting needs at least 2 networks, {self.size} ranks with {each} each make 1; start more processes "
                "(torchrun --nproc-per-node)"
            )
        network = next(i for i, ranks in enumerate(self.members) if self.rank in ranks)
        self.own = [network]
        position = self.members[network].index(self.rank)
        self._previous = self._global(self.members[network - 1][position])
        self._next = self._global(self.members[(network + 1) % len(self.members)][position])

    def blend(self, networks: Sequence[Network], coefficients: Sequence[Mapping[str, Tensor]]) -> list[list[Tensor]]:
        """All chunks are on their way at once; while they travel, those that have arrived are blended.

        See `Exchange.blend`.
        """
        (network,) = networks
        own_coefficients = coefficients[self.own[0]]
        device = self._device(network.device)
        what = "exchanging weights"
        blended: list[Tensor] = []
        in_flight = []
        for chunk in _chunks([part.tensor for part in network.parts.items]):
            own, theirs = chunk.pack(device), chunk.empty(device)
            with self._failing_clearly(what):
                in_flight.append((chunk, own, theirs, self._start(own, theirs) if len(own) else []))
        for chunk, own, theirs, works in in_flight:
            with self._failing_clearly(what):
                for work in works:
                    work.wait()
            mine = chunk.views(own)
            bank, other = (network.bank_of(views, chunk.first) for views in (mine, chunk.views(theirs)))
            if len(bank):
                wk.blend_(bank, other, network.vector(own_coefficients, bank), per=network.per)
            blended += mine
        return [blended]

    def _start(self, sent: Tensor, received: Tensor) -> list[dist.Work]:
        # One group call: NCCL would wait for each other's send with two ranks that both send first.
        works: list[dist.Work] = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, sent, self._next, self.group),
                dist.P2POp(dist.irecv, received, self._previous, self.group),
            ]
        )
        return works

    def _ranks_of_mesh(self, mesh: Any) -> list[int]:
        ranks, group = mesh.mesh.flatten().tolist(), dist.get_process_group_ranks(self.group)
        if self._ranks_per_network not in (None, len(ranks)):
            raise ValueError(
                f"ranks_per_network={self._ranks_per_network}, but the model is sharded over {len(ranks)} ranks; leave "
                "ranks_per_network out"
            )
        if not set(ranks) <= set(group):
            raise ValueError(
                f"the model is sharded over the ranks {ranks}, which are not all among the {group} of "
                "process_group; pass a group of the ranks of all networks (the default group, if those are all)"
            )
        return [group.index(rank) for rank in ranks]

    def _global(self, rank: int) -> int:
        return dist.get_global_rank(self.group, rank)


@dataclass(frozen=True)
class _Chunk:
    """Consecutive tensors, to be one buffer of bytes."""

    first: int
    """Number of the first tensor."""
    tensors: list[Tensor]

    def empty(self, device: torch.device) -> Tensor:
        return torch.empty(sum(map(_padded_bytes, self.tensors)), dtype=torch.uint8, device=device)

    def pack(self, device: torch.device) -> Tensor:
        buffer = self.empty(device)
        for view, tensor in zip(self.views(buffer), self.tensors, strict=True):
            view.copy_(tensor)
        return buffer

    def views(self, buffer: Tensor) -> list[Tensor]:
        """The tensors of a buffer, contiguous."""
        views, start = [], 0
        for tensor in self.tensors:
            end = start + tensor.numel() * tensor.element_size()
            views.append(buffer[start:end].view(tensor.dtype).view(tensor.shape))
            start += _padded_bytes(tensor)
        return views


def _chunks(tensors: Sequence[Tensor]) -> Iterator[_Chunk]:
    first, size = 0, 0
    for i, tensor in enumerate(tensors):
        size += _padded_bytes(tensor)
        if size >= CHUNK_BYTES or i == len(tensors) - 1:
            yield _Chunk(first, list(tensors[first : i + 1]))
            first, size = i + 1, 0


def _padded_bytes(tensor: Tensor) -> int:
    return -(-tensor.numel() * tensor.element_size() // _ALIGNMENT) * _ALIGNMENT
