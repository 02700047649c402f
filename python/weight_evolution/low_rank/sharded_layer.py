"""One layer of a sharded projection: what its ranks send to the one that projects it, and what that sends back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from we_kernels.low_rank.reference import RECTIFICATION_EPS

from .compact import VANISHING
from .layers import Layer


class Solution(NamedTuple):
    """What the owner of a layer found."""

    energy: float
    kept: float
    skipped: bool
    """These three as in `we_kernels.LowRankResult`."""
    factor: Tensor
    """float64 [1]: of the kept singular values; NaN where the layer is left alone."""
    basis: Tensor
    """[n, r]"""


@dataclass(frozen=True)
class ShardedLayer:
    """A layer that one of the ranks, its owner, projects.

    Either the rows go to the owner and come back. Or, of a layer with more rows than columns, lower triangles of the
    Gram matrices of the columns go there, whose sum is all that the owner needs, and every rank projects its own rows
    onto the basis that comes back. What moves fewer bytes is taken (docs/scaling.md).
    """

    position: int
    """Among the layers of the step."""
    layer: Layer
    rank: int
    """To project onto."""
    held: Tensor
    """This rank's rows."""
    sharded: bool
    """False: every rank has all rows, and those of the first count."""
    rows: Sequence[int]
    """How many each rank of the group has."""
    me: int
    """This rank's number in the group."""
    owner: int
    scale: Tensor | None
    """[N]: the row scale of `we_kernels.project_low_rank_`."""

    @property
    def mine(self) -> bool:
        """Whether this rank is the owner."""
        return self.me == self.owner

    @property
    def by_gram(self) -> bool:
        """Whether Gram matrices travel instead of rows."""
        return self.sharded and gram_is_smaller(self.layer.rows, self.layer.columns, self.held.dtype, len(self.rows))

    def to_owner(self) -> Tensor:
        """What this rank sends."""
        if not self.by_gram:
            return self.held
        matrix = self.held.flatten(1).double()
        if self.scale is not None:
            matrix = self._own(self.scale.double()) * matrix
        return (matrix.mT @ matrix)[self._lower]

    def like_to_owner(self, rank: int) -> Tensor:
        """Zeros, as large as what a rank sends."""
        if self.by_gram:
            side = self.layer.columns
            return torch.zeros(side * (side + 1) // 2, dtype=torch.float64, device=self.held.device)
        return self._zeros_of(self.rows[rank])

    def answer(self, rank: int, made: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
        """What the owner sends to a rank.

        Args:
            rank: that gets it.
            made: the new weight or, where Gram matrices travel, the factor.
            basis: [n, r].
        """
        return made if self.by_gram else made.split(list(self.rows))[rank], basis

    def like_answer(self, rank: int) -> tuple[Tensor, Tensor]:
        """Zeros, as large as that."""
        made = self.held.new_zeros(1, dtype=torch.float64) if self.by_gram else self._zeros_of(self.rows[rank])
        return made, self.blank_basis()

    def blank_basis(self) -> Tensor:
        """Zeros [n, r], as `we_kernels.LowRankBases` has them."""
        return blank_basis(self.layer, self.rank)

    def solve(self, triangles: Sequence[Tensor], *, energy_transfer: bool) -> Solution:
        """The basis, from what all ranks sent to the owner.

        A float64 Gram matrix resolves singular values down to 1e-8 of the largest, less than the rounding of float32.
        """
        gram = triangles[0].new_zeros(self._lower.shape)
        gram[self._lower] = torch.stack(list(triangles)).sum(0)
        gram += gram.tril(-1).mT
        energy = float(gram.trace())
        alone = Solution(energy, energy, True, gram.new_full((1,), math.nan), self.blank_basis())
        if not math.isfinite(energy):
            return alone
        values, vectors = torch.linalg.eigh(gram)
        if float(values[-1]) < VANISHING**2:
            return alone
        # No element of the projection is larger than its norm times the largest way back.
        if energy**0.5 * float(self._back.abs().max()) > torch.finfo(self.held.dtype).max:
            return alone._replace(kept=math.nan)
        kept = float(values[-self.rank :].sum())
        factor = torch.full_like(alone.factor, (energy / kept) ** 0.5 if energy_transfer else 1)
        return Solution(energy, kept, False, factor, vectors[:, -self.rank :].to(alone.basis))

    def rows_of(self, made: Tensor, basis: Tensor) -> Tensor:
        """This rank's new rows, from the owner's answer."""
        if not self.by_gram:
            return made
        if made.isnan():
            return self.held.clone()
        basis = basis.double()
        coordinates = made * (self.held.flatten(1).double() @ basis)
        if self.scale is not None:
            coordinates *= self._own(self.scale.double() * self._back)
        rows: Tensor = (coordinates @ basis.mT).view(self.held.shape).to(self.held.dtype)
        return rows

    @property
    def _lower(self) -> Tensor:
        """bool [n, n]: the lower triangle."""
        side = self.layer.columns
        return torch.ones((side, side), dtype=torch.bool, device=self.held.device).tril()

    @property
    def _back(self) -> Tensor:
        """float64 [N] or [1]: what takes a row back from its scale."""
        if self.scale is None:
            return self.held.new_ones(1, dtype=torch.float64)
        scale = self.scale.double()
        return scale / (scale.square() + RECTIFICATION_EPS)

    def _own(self, values: Tensor) -> Tensor:
        """[own rows, 1] of [N]."""
        own: Tensor = values.split(list(self.rows))[self.me]
        return own.unsqueeze(1)

    def _zeros_of(self, rows: int) -> Tensor:
        return self.held.new_zeros((rows, *self.held.shape[1:]))


def gram_is_smaller(rows: int, columns: int, dtype: torch.dtype, ranks: int) -> bool:
    """Whether triangles of Gram matrices are fewer bytes than the rows, there and back; of all ranks together.

    Only of weights whose rounding a float64 Gram matrix resolves, and in whose range almost every product is.
    """
    triangles = (ranks - 1) * 4 * columns * (columns + 1)
    twice = 2 * dtype.itemsize * rows * columns * (ranks - 1) / ranks
    return dtype in (torch.float32, torch.bfloat16) and columns < rows and triangles < twice


def blank_basis(layer: Layer, rank: int) -> Tensor:
    """Zeros [n, r], as `we_kernels.LowRankBases` has them where there is no basis yet."""
    dtype = torch.float64 if layer.weight.dtype == torch.float64 else torch.float32
    return torch.zeros((layer.full_rank, rank), dtype=dtype, device=layer.weight.device)
