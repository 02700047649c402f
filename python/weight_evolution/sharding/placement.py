"""`Placement`: on which rank each filter of a model's parameters is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


class Placement:
    """Which rank of a group has which filters: torch.chunk's rule, as DTensor and FSDP2 have it.

    Of the N filters of a sharded parameter rank r has those from ``r * ceil(N / ranks)`` on, at most ``ceil(N /
    ranks)`` and perhaps none. Of a parameter that is not sharded every rank has all, and the first speaks for them. Of
    one that is sharded along its input channels every rank has a part of all, and what they measure is summed.

    Args:
        group: the ranks that hold the shards of one model.
        sizes: filters of each parameter, on all ranks together.
        sharded: whether the filters of each are spread over the ranks.
        partial: whether every rank has some input channels of all filters of each; none when left out.
    """

    def __init__(
        self, group: dist.ProcessGroup, sizes: Sequence[int], sharded: Sequence[bool], partial: Sequence[bool] = ()
    ) -> None:
        self.group, self.rank, self.ranks = group, dist.get_rank(group), dist.get_world_size(group)
        self.sizes, self.sharded = tuple(sizes), tuple(sharded)
        self.partial = tuple(partial) or (False,) * len(self.sizes)
        self.chunks = [-(-size // self.ranks) if split else size for size, split in zip(sizes, sharded, strict=True)]
        """Filters of each parameter on the first rank."""
        self.mine = self._filters_of(self.rank)
        """int64 [f], on the CPU: which of all filters this rank has, in order."""
        self.most = max(sum(self.rows_on(rank)) for rank in range(self.ranks))
        """Filters of the rank that has the most."""
        self.speaker, self.place = torch.empty(2, sum(sizes), dtype=torch.int64, device="cpu")
        """int64 [F], on the CPU: the rank that speaks for each filter, and the filter's place among that rank's."""
        counts = torch.tensor(self.sizes, dtype=torch.int64, device="cpu")
        self._summed = torch.tensor(self.partial, device="cpu").repeat_interleave(counts).nonzero().squeeze(1)
        self._summed_places = torch.empty(self.ranks, len(self._summed), dtype=torch.int64, device="cpu")
        for rank in reversed(range(self.ranks)):
            filters = self._filters_of(rank)
            self.speaker[filters] = rank
            self.place[filters] = torch.arange(len(filters), device="cpu")
            self._summed_places[rank] = self.place[self._summed]

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
        """[F]: one entry for each of all filters, of the ranks' own, [ranks, `most`]; of parts the sum.

        Sums run in float64 in the order of the ranks, so that all ranks get the same bits.
        """
        entries = rows[self.speaker.to(rows.device), self.place.to(rows.device)]
        if len(self._summed):
            parts = rows.gather(1, self._summed_places.to(rows.device)).double()
            entries[self._summed.to(rows.device)] = sum(parts[1:].unbind(), parts[0]).to(rows)
        return entries

    def _filters_of(self, rank: int) -> Tensor:
        found, first = [torch.empty(0, dtype=torch.int64, device="cpu")], 0
        for size, chunk, split, rows in zip(self.sizes, self.chunks, self.sharded, self.rows_on(rank), strict=True):
            start = first + (rank * chunk if split else 0)
            found.append(torch.arange(start, start + rows, device="cpu"))
            first += size
        return torch.cat(found)
