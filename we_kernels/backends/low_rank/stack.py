"""Layers of one shape as one batch: their Gram matrices, and their projection once U is known."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..reference.importance import accumulate_dtype
from ..reference.low_rank import RECTIFICATION_EPS
from .bounds import Result

GRAM_BLOCK = 64
"""At twice so many rows a Gram matrix's symmetry is made use of: ResNet-50's in 160 ms; 128: 171 ms, never: 224 ms."""

ALONE = 1 << 16
"""Weights from which, on a CPU, a layer is a stack of its own: it is worth its own calls, and needs no copy."""


@dataclass(frozen=True)
class Stack:
    """B layers of one shape [N, M], dtype and rank."""

    members: list[int]
    """Their positions in the call's list."""
    weights: list[Tensor]
    """Views with the filters first."""
    scales: list[Tensor]
    """Row scales [N] each; empty: none."""
    bases: list[Tensor]
    """[n, r] each; empty: none are kept."""
    warm: bool
    """The bases hold the last projection's."""
    rank: int

    def __len__(self) -> int:
        return len(self.members)

    @property
    def shape(self) -> tuple[int, int]:
        """N and M."""
        rows = self.weights[0].shape[0]
        return rows, self.weights[0].shape[1:].numel()

    @property
    def n(self) -> int:
        """The smaller side."""
        return min(self.shape)

    @property
    def wide(self) -> bool:
        """N <= M: U is on the filters' side."""
        return self.n == self.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """Of the arithmetic."""
        return accumulate_dtype(self.weights[0])

    def take(self, indices: list[int]) -> Stack:
        """Some of the layers."""
        if len(indices) == len(self):
            return self
        members, weights, scales, bases = (
            [entries[i] for i in indices] if entries else []
            for entries in (self.members, self.weights, self.scales, self.bases)
        )
        return Stack(members, weights, scales, bases, self.warm, self.rank)  # type: ignore[arg-type]

    def matrices(self, dtype: torch.dtype) -> Tensor:
        """The weights as [B, N, M]; may be the weights' own memory."""
        return _joined([weight.reshape(self.shape) for weight in self.weights]).to(dtype)

    def basis(self, dtype: torch.dtype) -> Tensor:
        """The last projection's U, [B, n, r]; may be the bases' own memory."""
        return _joined(self.bases).to(dtype)

    def scale(self, dtype: torch.dtype) -> Tensor | None:
        """[B, N, 1], or None."""
        return torch.stack(self.scales).to(dtype).unsqueeze(-1) if self.scales else None

    def scaled(self, dtype: torch.dtype) -> Tensor:
        """The matrices to approximate, [B, N, M]."""
        scale, matrices = self.scale(dtype), self.matrices(dtype)
        return matrices if scale is None else scale * matrices

    def gram(self, dtype: torch.dtype) -> Tensor:
        """X X^T [B, n, n], or, where the rank is not reduced and only the energy is wanted, that [B, 1, 1]."""
        if self.rank >= self.n:
            return self.scaled(dtype).square().sum((1, 2), keepdim=True)
        if not self.wide:
            return gram_matrix(self.scaled(dtype).mT)
        gram, scale = gram_matrix(self.matrices(dtype)), self.scale(dtype)
        return gram if scale is None else gram.mul_(scale).mul_(scale.mT)

    def project_(self, found: Result, energy_transfer: bool) -> Tensor:
        """Overwrite the weights with their projection and the bases with U; the kept energy, float64 [B]."""
        u, x, scale = found.vectors.to(self.dtype), self.matrices(self.dtype), self.scale(self.dtype)
        if self.wide:
            coordinates = (u if scale is None else scale * u).mT @ x
        else:
            coordinates = x @ u if scale is None else scale * (x @ u)
        kept = found.kept
        if kept is None:
            kept = torch.linalg.vector_norm(coordinates, dim=(1, 2)).double().square()
        factor = torch.ones_like(kept)
        if energy_transfer:
            factor = torch.where(kept > 0, found.energy / kept, factor).sqrt()
        back = factor.to(self.dtype).view(-1, 1, 1)
        if scale is not None:
            back = back * (scale / (scale.square() + RECTIFICATION_EPS))

        in_place = len(self) == 1 and self.weights[0].dtype == self.dtype and self.weights[0].is_contiguous()
        into = x if in_place else None  # then x is the weight's own memory
        if self.wide:
            projected = torch.bmm(back * u, coordinates, out=into)
        else:
            projected = torch.bmm(coordinates.mul_(back), u.mT, out=into)
        if not in_place:
            for weight, matrix in zip(self.weights, projected, strict=True):
                weight.copy_(matrix.view(weight.shape))
        for basis, vectors in zip(self.bases, u, strict=False):
            basis.copy_(vectors)
        return kept


def make_stacks(
    weights: Sequence[Tensor],
    filter_dims: Sequence[int],
    ranks: Sequence[int],
    row_scales: Sequence[Tensor | None],
    bases: Sequence[Tensor],
) -> list[Stack]:
    """Layers of equal shape, dtype, rank and state together, but for large ones on a CPU."""
    views = [weight.movedim(dim, 0) for weight, dim in zip(weights, filter_dims, strict=True)]
    warm = torch.stack([basis[:, :1].any() for basis in bases]).tolist() if bases else [False] * len(views)
    stacks = defaultdict(list)
    for i, view in enumerate(views):
        scale = row_scales[i]
        shape = (view.shape[0], view.shape[1:].numel())
        alone = i if view.device.type == "cpu" and view.numel() >= ALONE else None
        stacks[shape, view.dtype, ranks[i], warm[i], None if scale is None else scale.dtype, alone].append(i)
    return [
        Stack(
            members,
            [views[i] for i in members],
            [scale for i in members if (scale := row_scales[i]) is not None],
            [bases[i] for i in members] if bases else [],
            warm[members[0]],
            ranks[members[0]],
        )
        for members in stacks.values()
    ]


def gram_matrix(x: Tensor, out: Tensor | None = None) -> Tensor:
    """X X^T of [B, n, m]; of large ones the blocks above the diagonal are copied from below it."""
    n = x.shape[1]
    if n < 2 * GRAM_BLOCK:
        return torch.bmm(x, x.mT, out=out)
    gram = x.new_empty((len(x), n, n)) if out is None else out
    first, second = slice(n // 2), slice(n // 2, n)
    gram_matrix(x[:, first], gram[:, first, first])
    gram_matrix(x[:, second], gram[:, second, second])
    below = torch.bmm(x[:, second], x[:, first].mT, out=gram[:, second, first])
    gram[:, first, second] = below.mT
    return gram


def _joined(entries: list[Tensor]) -> Tensor:
    return entries[0].unsqueeze(0) if len(entries) == 1 else torch.stack(entries)
