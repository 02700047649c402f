"""Low-rank projection by one singular value decomposition per layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .importance import accumulate_dtype

RECTIFICATION_EPS = 1e-5


def project_low_rank_(
    weights: Sequence[Tensor],
    filter_dims: Sequence[int],
    ranks: Sequence[int],
    row_scales: Sequence[Tensor | None],
    energy_transfer: bool,
    skip_below: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Energy before and kept, float64 [L], and the layers that were skipped, bool [L]."""
    projections: list[Tensor | None] = []
    energies, kept_energies, skips = [], [], []
    for weight, dim, rank, scale in zip(weights, filter_dims, ranks, row_scales, strict=True):
        matrix = weight.movedim(dim, 0).flatten(1).to(accumulate_dtype(weight))
        if scale is not None:
            scale = scale.to(matrix.dtype)[:, None]
            matrix = scale * matrix
        energy = matrix.double().square().sum()
        kept, skip, projection = energy, ~energy.isfinite(), None
        if rank < min(matrix.shape) and not skip:
            u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
            kept, skip = s[:rank].double().square().sum(), s[0] < skip_below
            factor = (energy / kept).sqrt().to(s.dtype) if energy_transfer else 1.0
            projection = (u[:, :rank] * (factor * s[:rank])) @ vt[:rank]
            if scale is not None:
                projection *= scale / (scale**2 + RECTIFICATION_EPS)
        projections.append(projection)
        energies.append(energy)
        kept_energies.append(kept)
        skips.append(skip)

    before, kept_energy, skipped = torch.stack(energies), torch.stack(kept_energies), torch.stack(skips)
    skipped |= ~before.isfinite().all()
    for weight, dim, projection, skip in zip(weights, filter_dims, projections, skipped.tolist(), strict=True):
        if projection is not None and not skip:
            rows = weight.movedim(dim, 0)
            rows.copy_(projection.view(rows.shape))
    return before, torch.where(skipped, before, kept_energy), skipped
