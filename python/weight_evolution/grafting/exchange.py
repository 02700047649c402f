"""What the ranks of a group tell each other of the networks that they graft."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..sharding.failures import ExchangeError
from ..tables import first_line
from .network import Network


class Exchange(ABC):
    """Networks over the ranks of a group. All methods that exchange something are collective."""

    members: list[list[int]]
    """Of each network its ranks in the group, by position; set by `arrange`."""
    own: list[int]
    """The numbers of the networks of which this rank has all or a part; set by `arrange`."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("process_group does not contain this rank; make FilterGrafting on its ranks only")
        self._on_cpu = dist.get_backend(group) in ("gloo", "mpi")

    @abstractmethod
    def ranks_of(self, networks: Sequence[Network], models: Sequence[nn.Module]) -> list[int]:
        """The ranks of the group that have this rank's networks, which were made of these models.

        Raises:
            TypeError, ValueError: they cannot be grafted over this group; says how to pass them.
        """

    @abstractmethod
    def arrange(self, members: Sequence[Sequence[int]]) -> None:
        """Settle who is a network's rank.

        Args:
            members: what `ranks_of` gave on each rank.

        Raises:
            ValueError: the networks do not make up the group; on all ranks.
        """

    @abstractmethod
    def blend(self, networks: Sequence[Network], coefficients: Sequence[Mapping[str, Tensor]]) -> list[list[Tensor]]:
        """Contiguous copies of the parts of this rank's networks, blended with those of the networks before.

        Args:
            networks: this rank's; only read.
            coefficients: of all networks, what `Network.coefficients` gives.
        """

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
        compute: Callable[[], Sequence[Tensor]],
        count: int,
        operation: dist.ReduceOp.RedOpType,
        own: torch.device,
        what: str,
    ) -> Tensor:
        """float64 [networks, count] on the CPU: for each network the sum or maximum over its ranks. One all-reduce.

        A rank whose computation fails takes part all the same and tells the others.

        Args:
            compute: gives float64 [count] on the CPU for each of this rank's networks.
            operation: SUM or MAX.
            own: the device of the networks.

        Raises:
            ExchangeError: another rank failed or did not come.
        """
        values, error = _outcome(compute)
        failed = torch.zeros(self.size, dtype=torch.float64, device="cpu")
        numbers = failed.new_full((len(self.members), count), -torch.inf if operation == dist.ReduceOp.MAX else 0)
        if values is None:
            failed[self.rank] = 1
        else:
            numbers[self.own] = torch.stack(list(values))
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

    def _device(self, own: torch.device) -> torch.device:
        """Where the buffers are that the group can send, of a network on this device."""
        return torch.device("cpu") if self._on_cpu else own

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
