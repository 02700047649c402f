"""Layers of one shape: their Gram matrices, and their projection once U is known."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..runtime.filters import accumulate_dtype
from .bounds import Result
from .reference import RECTIFICATION_EPS, fits_always, representable

GRAM_BLOCK = 64
"""At twice so many rows a Gram matrix's symmetry is made use of: ResNet-50's in 160 ms; 128: 171 ms, never: 224 ms."""

COLUMNS = 16
"""X U of a tall X gets a multiple of so many columns: MKL takes 20 ms for 2048 x 1024 by 416, 32 ms by 409."""


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
    def numel(self) -> int:
        """Weights in all."""
        return sum(weight.numel() for weight in self.weights)

    @property
    def n(self) -> int:
        """The smaller side."""
        return min(self.shape)

    @property
    def reduced(self) -> bool:
        """The rank is smaller than the matrices' own."""
        return self.rank < self.n

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
        """The weights as [B, N, M]: of one layer its own memory if possible, of several a copy, made once."""
        return (self._joined if len(self) > 1 else self._as_matrices()).to(dtype)

    def _as_matrices(self) -> Tensor:
        return joined([weight.reshape(self.shape) for weight in self.weights])

    @cached_property
    def _joined(self) -> Tensor:
        return self._as_matrices().to(self.dtype)

    def scale(self, dtype: torch.dtype) -> Tensor | None:
        """[B, N, 1], or None."""
        return torch.stack(self.scales).to(dtype).unsqueeze(-1) if self.scales else None

    def scaled(self, dtype: torch.dtype) -> Tensor:
        """The matrices to approximate, [B, N, M]."""
        scale, matrices = self.scale(dtype), self.matrices(dtype)
        return matrices if scale is None else scale * matrices

    def gram_into(self, out: Tensor) -> None:
        """Fill [B, n, n] with X X^T; [B, 1, 1], of a layer whose rank is not reduced, with the energy."""
        if not self.reduced:
            torch.sum(self.scaled(out.dtype).square(), (1, 2), keepdim=True, out=out)
            return
        if self.wide:
            gram_matrix(self.matrices(out.dtype), out)
            if (scale := self.scale(out.dtype)) is not None:
                out.mul_(scale).mul_(scale.mT)
        else:
            gram_matrix(self.scaled(out.dtype).mT, out)

    def project_(self, found: Result, energy_transfer: bool, dtype: torch.dtype) -> Tensor:
        """As `Batch.project_`."""
        u, x, scale = found.vectors.to(dtype), self.matrices(dtype), self.scale(dtype)
        for basis, vectors in zip(self.bases, u, strict=False):
            basis.copy_(vectors)
        if self.wide:
            coordinates = torch.bmm((u if scale is None else scale * u).mT, x)
        else:
            u = pad(u, (0, -self.rank % COLUMNS))
            coordinates = torch.bmm(x, u)
            if scale is not None:
                coordinates *= scale
        kept = found.kept
        if kept is None:
            kept = torch.linalg.vector_norm(coordinates, dim=(1, 2)).double().square()
        factor = torch.ones_like(kept)
        if energy_transfer:
            factor = torch.where(kept > 0, found.energy / kept, factor).sqrt()
        back = factor.to(dtype).view(-1, 1, 1)
        if scale is not None:
            back = back * (scale / (scale.square() + RECTIFICATION_EPS))

        if self.wide:
            torch.bmm(back * u, coordinates, out=x)
        else:
            torch.bmm(coordinates.mul_(back), u.mT, out=x)
        own = self.weights[0].dtype
        if not fits_always(dtype, own):
            fits = representable(x, own)
            x = torch.where(fits.view(-1, 1, 1), x, self._as_matrices().to(dtype))
            kept = torch.where(fits, kept, torch.nan)
        if len(self) > 1 or own != dtype or not self.weights[0].is_contiguous():
            shaped = [matrix.reshape(weight.shape) for weight, matrix in zip(self.weights, x, strict=True)]
            torch._foreach_copy_(self.weights, shaped)
        return kept


def gram_matrix(x: Tensor, out: Tensor) -> None:
    """X X^T of [B, n, m]; of large ones the blocks above the diagonal are copied from below it."""
    n = x.shape[1]
    if n < 2 * GRAM_BLOCK:
        torch.bmm(x, x.mT, out=out)
        return
    first, second = slice(n // 2), slice(n // 2, n)
    gram_matrix(x[:, first], out[:, first, first])
    gram_matrix(x[:, second], out[:, second, second])
    below = torch.bmm(x[:, second], x[:, first].mT, out=out[:, second, first])
    out[:, first, second] = below.mT


def joined(entries: list[Tensor]) -> Tensor:
    """[B, ...]; of one entry its own memory."""
    return entries[0].unsqueeze(0) if len(entries) == 1 else torch.stack(entries)
