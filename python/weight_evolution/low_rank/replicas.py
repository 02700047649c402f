"""Ranks that train one network data-parallel: what the first one has decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch.distributed as dist
from torch import Tensor, nn

from ..model.wrappers import data_parallel_around


class Replicas:
    """The ranks of a DistributedDataParallel model. All methods are collective."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self._first = dist.get_global_rank(group, 0)

    @staticmethod
    def of(model: nn.Module) -> Replicas | None:
        """Those of the DistributedDataParallel around the model, if there is one and it has several ranks."""
        groups = [wrapper.process_group for wrapper in data_parallel_around(model)]
        return next((Replicas(group) for group in groups if dist.get_world_size(group) > 1), None)

    def take_(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors with those of the first rank."""
        for tensor in tensors:
            buffer = tensor.detach().contiguous()
            dist.broadcast(buffer, self._first, group=self._group)
            if buffer.data_ptr() != tensor.data_ptr():
                tensor.copy_(buffer)

    def ranks_of_first(self, ranks: list[int]) -> list[int]:
        """The first rank's list."""
        found: list[list[int]] = [ranks]
        dist.broadcast_object_list(found, self._first, group=self._group)
        return found[0]

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a LowRankProjection of a DistributedDataParallel model belongs to its process group and cannot be copied; "
            "make a new one for the copied model and load the state_dict"
        )


def count_other_ranks() -> int:
    """Ranks of torch.distributed beside this one; 0 where it is not initialized."""
    return dist.get_world_size() - 1 if dist.is_available() and dist.is_initialized() else 0
