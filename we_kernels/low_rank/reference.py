"""Low-rank projection by one singular value decomposition per layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..runtime.filters import accumulate_dtype
from ..runtime.view import BankView
from .rule import ProjectionRule

RECTIFICATION_EPS = 1e-5


def project_low_rank_(bank: BankView, rule: ProjectionRule, bases: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Energy before and kept, float64 [L], and the layers that were skipped, bool [L]. ``bases`` are not used."""
    projections: list[Tensor | None] = []
    energies, kept_energies, skips = [], [], []
    for weight, dim, rank, scale in zip(bank.weights, bank.filter_dims, rule.ranks, rule.row_scales, strict=True):
        matrix, scale = _scaled(weight, dim, scale, accumulate_dtype(weight))
        energy = matrix.double().square().sum()
        if not energy <= torch.finfo(matrix.dtype).max:
            matrix, scale = _scaled(weight, dim, scale, torch.float64)
            energy = matrix.square().sum()
        kept, skip, projection = energy, ~energy.isfinite(), None
        if rank < min(matrix.shape) and not skip:
            u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
            kept, skip = s[:rank].double().square().sum(), s[0] < rule.skip_below
            factor = (energy / kept).sqrt().to(s.dtype) if rule.energy_transfer else 1.0
            projection = (u[:, :rank] * (factor * s[:rank])) @ vt[:rank]
            if scale is not None:
                projection *= scale / (scale**2 + RECTIFICATION_EPS)
            if not skip and not representable(projection[None], weight.dtype):
                kept, skip = torch.full_like(kept, torch.nan), torch.ones_like(skip)
        projections.append(projection)
        energies.append(energy)
        kept_energies.append(kept)
        skips.append(skip)

    before, kept_energy, skipped = torch.stack(energies), torch.stack(kept_energies), torch.stack(skips)
    skipped |= ~before.isfinite().all()
    for weight, dim, projection, skip in zip(
        bank.weights, bank.filter_dims, projections, skipped.tolist(), strict=True
    ):
        if projection is not None and not skip:
            rows = weight.movedim(dim, 0)
            rows.copy_(projection.view(rows.shape))
    return before, torch.where(skipped & ~kept_energy.isnan(), before, kept_energy), skipped


def fits_always(computed: torch.dtype, own: torch.dtype) -> bool:
    """Whether what is computed in one dtype is in the range of another, which may be a little smaller (bfloat16)."""
    return torch.finfo(computed).max <= 2 * torch.finfo(own).max


def representable(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Bool [B]: whether all elements of a matrix [N, M] are within the range of a dtype."""
    largest: Tensor = torch.linalg.vector_norm(matrices, torch.inf, (1, 2))
    return largest <= torch.finfo(dtype).max


def _scaled(weight: Tensor, dim: int, scale: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """The matrix to approximate, and its row scale [N, 1]."""
    matrix = weight.movedim(dim, 0).flatten(1).to(dtype)
    if scale is None:
        return matrix, None
    scale = scale.to(dtype).view(-1, 1)
    return scale * matrix, scale
