"""What is promised of a projection, what rounding may cost, and the form of a way's answer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

ERROR = 4.0
"""Bound on the Frobenius error of a Gram matrix with its eigenvectors, in units of trace x epsilon of the dtype.
Measured for n of 16 to 512, flat to fast-decaying spectra: 1.2 for the matrix, 3 for the energy it costs."""

DISTANCE_TOLERANCE, ENERGY_TOLERANCE = 1e-4, 5e-6
"""Energy that may be lost to the optimal projection, as shares of what that drops and of what it keeps. Half of what is
promised: a distance within 1e-4 (squared, 2e-4) and an energy within 1e-5 of the optimum's."""

OPEN, FOUND, VANISHING = 0, 1, 2


class Result(NamedTuple):
    """What a way found for a batch of B layers."""

    status: Tensor
    """int [B]: OPEN (not good enough), FOUND or VANISHING (the largest singular value is under the limit)."""
    vectors: Tensor
    """[B, n, r]: U, orthonormal columns in any order."""
    energy: Tensor
    """float64 [B]: sum of the squared singular values."""
    kept: Tensor | None
    """float64 [B]: sum over the kept ones; None: to be measured when projecting."""

    def take(self, indices: list[int]) -> Result:
        """Of some of the layers."""
        if len(indices) == len(self.status):
            return self
        return Result(*(field if field is None else field[indices] for field in self))  # type: ignore[arg-type]

    def split(self, lengths: list[int]) -> list[Result]:
        """One for each part of the batch."""
        status, vectors, energy = (field.split(lengths) for field in self[:3])
        kept = [None] * len(lengths) if self.kept is None else self.kept.split(lengths)
        return [Result(*fields) for fields in zip(status, vectors, energy, kept, strict=True)]


def rounding_error(energy: Tensor, gram: Tensor) -> Tensor:
    """Float64 [B]: bound on the Frobenius error of Gram matrices [B, n, n] of these traces."""
    info = torch.finfo(gram.dtype)
    return ERROR * info.eps * energy + info.tiny * gram.shape[1] ** 2  # the latter for squares that underflow


def allowed_loss(dropped: Tensor, kept: Tensor) -> Tensor:
    """Energy that a basis may keep less than the best one, which drops and keeps so much."""
    return torch.minimum(DISTANCE_TOLERANCE * dropped, ENERGY_TOLERANCE * kept)


def trace(matrices: Tensor) -> Tensor:
    """Float64 [B]."""
    return matrices.diagonal(dim1=1, dim2=2).double().sum(1)
