"""How many dimensions the filters of a layer really use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST = 2048
"""The eigenvalues of a matrix of this size take half a second on two cores, of twice the size ten times that."""


@dataclass(frozen=True)
class Spectrum:
    """Of a weight seen as a matrix [filters, elements of a filter]."""

    effective_rank: float
    """exp(entropy of the singular values over their sum): Roy and Vetterli, "The effective rank", EUSIPCO 2007."""
    ranks: dict[float, int]
    """Share of the energy (the sum of the squared singular values) -> the smallest rank that holds it."""


def spectrum(rows: Tensor, shares: Sequence[float]) -> Spectrum:
    """``rows``: finite, float32 or float64 [F, K]. Singular values under the rounding of the Gram matrix count as 0."""
    matrix = rows if rows.shape[0] <= rows.shape[1] else rows.mT
    largest = matrix.abs().max() if matrix.numel() else 0
    if not largest:
        return Spectrum(0.0, dict.fromkeys(shares, 0))
    matrix = matrix / largest  # squares of tiny or huge weights would leave the range
    gram = matrix @ matrix.mT
    energies = torch.linalg.eigvalsh(gram).double().flip(0)
    rounding = torch.finfo(gram.dtype).eps * len(gram) * energies[0]
    energies = energies.where(energies > rounding, 0)
    held = energies.cumsum(0) / energies.sum()
    return Spectrum(_effective_rank(energies.sqrt()), {share: int((held < share).sum()) + 1 for share in shares})


def _effective_rank(singular_values: Tensor) -> float:
    return math.exp(torch.special.entr(singular_values / singular_values.sum()).sum())
