"""DistributedDataParallel: each rank has the whole network, and a part of each batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import UserError
from .ranks import Ranks

if TYPE_CHECKING:
    from ..config import TrainingConfig
    from ..data import Dataset

T = TypeVar("T")


class Replicas(Ranks):
    """The ranks of the default group, which each have the network; all that they tell each other is collective."""

    mode = "ddp"

    def __init__(self) -> None:
        self.rank, self.count = dist.get_rank(), dist.get_world_size()

    @property
    def described(self) -> dict[str, Any]:
        return {"parallel": self.mode, "ranks": self.count}

    def check(self, config: TrainingConfig, dataset: Dataset) -> None:
        if config.batch_size % self.count:
            raise UserError(
                f"--batch-size {config.batch_size} is split over the ranks and must be a multiple of their number, "
                f"{self.count}"
            )
        # BatchNorm cannot train on one value per channel.
        for part, images, least in (
            ("training", dataset.train_images, 2 * self.count),
            ("test", dataset.test_images, self.count),
        ):
            if len(images) < least:
                raise UserError(
                    f"--parallel {self.mode}: {len(images)} {part} images are too few for {self.count} ranks, which "
                    f"need {least}; start fewer"
                )

    def place(self, model: nn.Module) -> nn.Module:
        return DistributedDataParallel(model)

    def part(self, count: int) -> slice:
        return _part(count, self.rank, self.count)

    def weight(self, count: int) -> float:
        return len(range(count)[self.part(count)]) * self.count / count

    def test_parts(self, count: int, size: int) -> list[slice]:
        own = range(count)[self.part(count)]
        most = -(-count // self.count)  # of the rank that has the most
        batches = -(-most // size)
        parts = [own[_part(len(own), i, batches)] for i in range(batches)]
        return [slice(part.start, part.stop) for part in parts]

    def randomness(self) -> tuple[str | int, ...]:
        return ("rank", self.rank) if self.rank else ()

    def sum(self, tensor: Tensor) -> Tensor:
        dist.all_reduce(tensor)
        return tensor

    def share_buffers(self, model: nn.Module) -> None:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)

    def on_first(self, work: Callable[[], T]) -> T:
        outcome: list[Any] = [None, None]
        failure: Exception | None = None
        if self.first:
            try:
                outcome[0] = work()
            except Exception as error:
                failure, outcome[1] = error, str(error)
        dist.broadcast_object_list(outcome, 0)
        if failure is not None:
            raise failure
        if outcome[1] is not None:
            raise UserError(f"rank 0 failed: {outcome[1]}")
        result: T = outcome[0]
        return result


def _part(count: int, part: int, parts: int) -> slice:
    """One of ``parts`` parts of so many, of which the first ones have one more where they cannot be equal."""
    size, more = divmod(count, parts)
    start = part * size + min(part, more)
    return slice(start, start + size + (part < more))
