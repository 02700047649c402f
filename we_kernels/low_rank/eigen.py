"""Ways 2 and 3: the symmetric eigensolver, in the arithmetic's precision and beyond."""

from __future__ import annotations

import torch
from torch import Tensor

from .batch import Batch, make_grams
from .bounds import FOUND, VANISHING, Result, allowed_loss, rounding_error, trace


def decompose(batch: Batch, gram: Tensor, energy: Tensor, skip_below: float) -> Result:
    """Open where the Gram matrix is too coarse for the spectrum."""
    found, rank = torch.linalg.eigh(gram), batch.rank
    values = found.eigenvalues.double()
    kept, dropped = values[:, -rank:].sum(1), values[:, :-rank].clamp(min=0).sum(1)
    gap = values[:, -rank] - values[:, -rank - 1]
    error, allowed = rounding_error(energy, gram), allowed_loss(dropped, kept)
    good = (dropped > error) & ((error <= allowed) | (error.square() <= allowed * gap))
    good |= gram.dtype != batch.dtype  # the Gram matrix is already the float64 one of float32 weights
    vanishing = values[:, -1] < skip_below**2
    status = torch.where(vanishing, VANISHING, good.int() * FOUND)
    return Result(status, found.eigenvectors[:, :, -rank:], energy, kept)


def decompose_precisely(batch: Batch, gram: Tensor, energy: Tensor, skip_below: float) -> Result:
    """What resolves every spectrum down to the rounding of the weights: a float64 Gram matrix of float32 weights, the
    singular value decomposition of float64 ones."""
    if batch.dtype == torch.float64:
        return _svd(batch, skip_below)
    gram = make_grams([batch], torch.float64)[0]
    return decompose(batch, gram, trace(gram), skip_below)


def _svd(batch: Batch, skip_below: float) -> Result:
    vectors, squares = [], []
    for stack in batch.stacks:
        x = stack.scaled(torch.float64)
        u, values, _ = torch.linalg.svd(x if stack.wide else x.mT, full_matrices=False)
        vectors.append(u[:, :, : batch.rank])
        squares.append(values.square())
    square = torch.cat(squares)
    status = torch.where(square[:, 0] < skip_below**2, VANISHING, FOUND)
    return Result(status, torch.cat(vectors), square.sum(1), square[:, : batch.rank].sum(1))
