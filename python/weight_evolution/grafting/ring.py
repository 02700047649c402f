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

CHUNK_BYTES = 1 << 20
"""Tensors are sent together until they are so large; what a rank blends while the next ones travel."""
_ALIGNMENT = 16


class Ring:
    """Networks on consecutive ranks: network n is on the ranks [n * ranks_per_network, (n + 1) * ranks_per_network).

    Each rank sends to the rank of the same position in the next network. All methods are collective.
    """

    def __init__(self, group: dist.ProcessGroup, ranks_per_network: int) -> None:
        self.group = group
        self.ranks_per_network = ranks_per_network
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("process_group does not contain this rank; make FilterGrafting on its ranks only")
        if self.size % ranks_per_network:
            raise ValueError(
                f"ranks_per_network={ranks_per_network} does not divide the {self.size} ranks of the process group"
            )
        self.networks = self.size // ranks_per_network
        if self.networks < 2:
            raise ValueError(
                f"grafting needs at least 2 networks, {self.size} ranks with {ranks_per_network} each make "
                f"{self.networks}; start more processes (torchrun --nproc-per-node)"
            )
        self.network = self.rank // ranks_per_network
        self._next = self._global((self.rank + ranks_per_network) % self.size)
        self._previous = self._global((self.rank - ranks_per_network) % self.size)
        self._on_cpu = dist.get_backend(group) in ("gloo", "mpi")

    def check_replicas(self, model: nn.Module) -> None:
        """Refuse a data-parallel model whose ranks are not one network of the ring.

        Raises:
            ValueError: says how to pass it.
        """
        for wrapper in data_parallel_around(model):
            replicas = dist.get_process_group_ranks(wrapper.process_group)
            first = self.network * self.ranks_per_network
            own = [self._global(rank) for rank in range(first, first + self.ranks_per_network)]
            if replicas != own:
                raise ValueError(
                    f"the model is in DistributedDataParallel, whose ranks {replicas} hold one network; pass "
                    f"ranks_per_network={len(replicas)} and a process_group in which these ranks come one after the "
                    f"other, followed by those of the next network (now the ranks {own} would be one)"
                )

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a FilterGrafting over a process group belongs to its ranks and cannot be copied; make a new one for the "
            "copied model, on all ranks"
        )

    def device(self, network: Network) -> torch.device:
        """Where the buffers are that the group can send."""
        return torch.device("cpu") if self._on_cpu else network.device

    def agree(self, own: object, error: Exception | None, what: str) -> list[Any]:
        """One object of every rank; raises on all ranks if one has an error to report: there its own, else which."""
        outcome = (None, f"{type(error).__name__}: {error}") if error is not None else (own, None)
        outcomes: list[tuple[Any, str | None]] = [(None, None)] * self.size
        with self._failing_clearly(what):
            dist.all_gather_object(outcomes, outcome, group=self.group)
        if error is not None:
            raise error
        for rank, (_, message) in enumerate(outcomes):
            if message is not None:
                raise ExchangeError(f"filter grafting, {what}: rank {rank} failed with {message}; nothing was changed")
        return [value for value, _ in outcomes]

    def blend(self, network: Network, coefficients: Callable[[wk.FilterBank], Tensor]) -> list[Tensor]:
        """The parts blended with those of the rank before, contiguous copies; the network is only read.

        All chunks are on their way at once; while they travel, those that have arrived are blended.
        """
        device = self.device(network)
        what = "exchanging weights"
        blended: list[Tensor] = []
        in_flight = []
        for chunk in _chunks([part.tensor for part in network.parts.items]):
            own, theirs = chunk.pack(device), chunk.empty(device)
            with self._failing_clearly(what):
                in_flight.append((chunk, own, theirs, self._start(own, theirs)))
        for chunk, own, theirs, works in in_flight:
            with self._failing_clearly(what):
                for work in works:
                    work.wait()
            mine = chunk.views(own)
            bank, other = (network.bank_of(views, chunk.first) for views in (mine, chunk.views(theirs)))
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
