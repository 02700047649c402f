"""`Placement`: on which rank each filter of a model's parameters is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class Placement:
    """Which rank of a group has which filters: torch.chunk's rule, as DTensor and FSDP2 have it.

    Of the N filters of a sharded parameter rank r has those from ``r * ceil(N / ranks)`` on, at most ``ceil(N /
    ranks)`` and perhaps none. Of a parameter that is not sharded every rank has all, and the first speaks for them.

    Args:
        group: the ranks that hold the shards of one model.
        sizes: filters of each parameter, on all ranks together.
        sharded: whether each is spread over the ranks.
    """

    def __init__(self, group: dist.ProcessGroup, sizes: Sequence[int], sharded: Sequence[bool]) -> None:
        self.group, self.rank, self.ranks = group, dist.get_rank(group), dist.get_world_size(group)
        self.sizes, self.sharded = tuple(sizes), tuple(sharded)
        self.chunks = [-(-size // self.ranks) if split else size for size, split in zip(sizes, sharded, strict=True)]
        """Filters of each parameter on the first rank."""
        self.mine = self._filters_of(self.rank)
        """int64 [f], on the CPU: which of all filters this rank has, in order."""
        self.most = max(sum(self.rows_on(rank)) for rank in range(self.ranks))
        """Filters of the rank that has the most."""
        self.speaker, self.place = torch.empty(2, sum(sizes), dtype=torch.int64, device="cpu")
        """int64 [F], on the CPU: the rank that speaks for each filter, and the filter's place among that rank's."""
        for rank in reversed(range(self.ranks)):
            filters = self._filters_of(rank)
            self.speaker[filters] = rank
            self.place[filters] = torch.arange(len(filters), device="cpu")

    def rows_on(self, rank: int) -> list[int]:
        """How many filters of each parameter a rank has."""
        return [
            min(max(size - rank * chunk, 0), chunk) if split else size
            for size, chunk, split in zip(self.sizes, self.chunks, self.sharded, strict=True)
        ]

    def own(self, per_filter: Tensor) -> Tensor:
        """Of a tensor with one entry for each of all filters, the entries of this rank's."""
        return per_filter[self.mine.to(per_filter.device)]

    def by_filter(self, rows: Tensor) -> Tensor:
        """[F]: one entry for each of all filters, of the ranks' own, [ranks, `most`]."""
        return rows[self.speaker.to(rows.device), self.place.to(rows.device)]

    def _filters_of(self, rank: int) -> Tensor:
        found, first = [torch.empty(0, dtype=torch.int64, device="cpu")], 0
        for size, chunk, split, rows in zip(self.sizes, self.chunks, self.sharded, self.rows_on(rank), strict=True):
            start = first + (rank * chunk if split else 0)
            found.append(torch.arange(start, start + rows, device="cpu"))
            first += size
        return torch.cat(found)
