"""The ring over torch.distributed: who the neighbours are, and how flat buffers go from one to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

import we_kernels as wk

from ..model.wrappers import data_parallel_around
from ..sharding.failures import ExchangeError
from ..tables import first_line
from .network import Network
from .sharded_network import ShardedNetwork

CHUNK_BYTES = 1 << 20
"""Tensors are sent together until they are so large; what a rank blends while the next ones travel."""
_ALIGNMENT = 16


class Ring:
    """Networks on the ranks of a group, each on as many; one rank sends to that of the same position in the next.

    All methods that exchange something are collective.
    """

    members: list[list[int]]
    """Of each network its ranks in the group, by position; set by `arrange`."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("process_group does not contain this rank; make FilterGrafting on its ranks only")
        self._on_cpu = dist.get_backend(group) in ("gloo", "mpi")

    def ranks_of(self, network: Network, model: nn.Module, ranks_per_network: int | None) -> list[int]:
        """The ranks of the group that have this rank's network: those of its mesh, or consecutive ones.

        Raises:
            ValueError: they are not in the group, or not those that a wrapper of the model has; says how to pass it.
        """
        if isinstance(network, ShardedNetwork):
            return self._ranks_of_mesh(network.mesh, ranks_per_network)
        count = 1 if ranks_per_network is None else ranks_per_network
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
        """Settle who is a network's rank and who its neighbours.

        Args:
            members: what `ranks_of` gave on each rank.

        Raises:
            ValueError: the networks do not make up the group; on all ranks.
        """
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
        self.network = next(i for i, ranks in enumerate(self.members) if self.rank in ranks)
        position = self.members[self.network].index(self.rank)
        self._previous = self._global(self.members[self.network - 1][position])
        self._next = self._global(self.members[(self.network + 1) % len(self.members)][position])

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a FilterGrafting over a process group belongs to its ranks and cannot be copied; make a new one for the "
            "copied model, on all ranks"
        )

    def agree(self, compute: Callable[[], Any], what: str) -> list[Any]:
        """What each rank computes, an object; where that fails on one, all raise: it its own error, others which.

        Raises:
            ExchangeError: another rank failed or did not come.
        """
        own, error = _outcome(compute)
        outcomes: list[tuple[Any, str | None]] = [(None, None)] * self.size
        with self._failing_clearly(what):
            told = None if error is None else f"{type(error).__name__}: {error}"
            dist.all_gather_object(outcomes, (own, told), group=self.group)
        if error is not None:
            raise error
        for rank, (_, message) in enumerate(outcomes):
            if message is not None:
                raise ExchangeError(f"filter grafting, {what}: rank {rank} failed with {message}; nothing was changed")
        return [value for value, _ in outcomes]

    def reduce(
        self,
        compute: Callable[[], Tensor],
        count: int,
        operation: dist.ReduceOp.RedOpType,
        own: torch.device,
        what: str,
    ) -> Tensor:
        """float64 [networks, count] on the CPU: for each network the sum or maximum over its ranks. One all-reduce.

        A rank whose computation fails takes part all the same and tells the others.

        Args:
            compute: gives float64 [count] on the CPU.
            operation: SUM or MAX.
            own: the device of the network.

        Raises:
            ExchangeError: another rank failed or did not come.
        """
        values, error = _outcome(compute)
        failed = torch.zeros(self.size, dtype=torch.float64, device="cpu")
        numbers = failed.new_full((len(self.members), count), -torch.inf if operation == dist.ReduceOp.MAX else 0)
        if values is None:
            failed[self.rank] = 1
        else:
            numbers[self.network] = values
        block = torch.cat([failed, numbers.flatten()]).to(self._device(own))
        with self._failing_clearly(what):
            dist.all_reduce(block, operation, group=self.group)
        if error is not None:
            raise error
        block = block.cpu()
        if (failed := block[: self.size]).any():
            ranks = ", ".join(map(str, failed.nonzero().flatten().tolist()))
            raise ExchangeError(
                f"filter grafting, {what}: rank {ranks} failed, for a reason that it gives itself; nothing was changed"
            )
        return block[self.size :].view_as(numbers)

    def blend(self, network: Network, coefficients: Callable[[wk.FilterBank], Tensor]) -> list[Tensor]:
        """The parts blended with those of the rank before, contiguous copies; the network is only read.

        All chunks are on their way at once; while they travel, those that have arrived are blended.
        """
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
                wk.blend_(bank, other, coefficients(bank), per=network.per)
            blended += mine
        return blended

    def _start(self, sent: Tensor, received: Tensor) -> list[dist.Work]:
        # One group call: NCCL would wait for each other's send with two ranks that both send first.
        works: list[dist.Work] = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, sent, self._next, self.group),
                dist.P2POp(dist.irecv, received, self._previous, self.group),
            ]
        )
        return works

    def _device(self, own: torch.device) -> torch.device:
        """Where the buffers are that the group can send, of a network on this device."""
        return torch.device("cpu") if self._on_cpu else own

    def _ranks_of_mesh(self, mesh: Any, ranks_per_network: int | None) -> list[int]:
        ranks, group = mesh.mesh.flatten().tolist(), dist.get_process_group_ranks(self.group)
        if ranks_per_network not in (None, len(ranks)):
            raise ValueError(
                f"ranks_per_network={ranks_per_network}, but the model is sharded over {len(ranks)} ranks; leave "
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

    @contextmanager
    def _failing_clearly(self, what: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # which error a backend raises for a lost peer differs
            raise ExchangeError(
                f"filter grafting, {what}: rank {self.rank} of {self.size} lost another rank, or one did not come "
                f"within the time-out of the process group ({first_line(error)}); the weights of this rank are "
                "unchanged"
            ) from error


def _outcome(compute: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """What it gives, or the error to be told; a loss of others cannot be told to them."""
    try:
        return compute(), None
    except ExchangeError:
        raise
    except Exception as error:
        return None, error


def check_group(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    """The process group to graft over; the default group for None.

    Raises:
        TypeError: it is none. ValueError: there is no torch.distributed, or it is not initialized.
    """
    if not dist.is_available():
        raise ValueError("one model alone needs torch.distributed, which this PyTorch lacks; pass a list of models")
    if group is None and not dist.is_initialized():
        raise ValueError(
            "one model alone is grafted over torch.distributed: call torch.distributed.init_process_group first (under "
            "torchrun), or pass a list of two models or more"
        )
    chosen = dist.group.WORLD if group is None else group
    if not isinstance(chosen, dist.ProcessGroup):
        raise TypeError(f"process_group must be a torch.distributed.ProcessGroup of this rank, got {chosen!r}")
    return chosen


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
