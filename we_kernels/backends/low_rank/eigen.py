"""Ways 2 and 3: the symmetric eigensolver, in the arithmetic's precision and beyond."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .bounds import FOUND, VANISHING, Result, allowed_loss, rounding_error, trace
from .parallel import eigh
from .stack import Stack


def decompose(stacks: Sequence[Stack], grams: Sequence[Tensor], skip_below: float) -> list[Result]:
    """Open where the Gram matrix is too coarse for the spectrum."""
    return [
        _judged(stack, gram, values, vectors, skip_below)
        for stack, gram, (values, vectors) in zip(stacks, grams, eigh(grams), strict=True)
    ]


def decompose_precisely(stacks: Sequence[Stack], grams: Sequence[Tensor], skip_below: float) -> list[Result]:
    """What resolves every spectrum down to the rounding of the weights: a float64 Gram matrix of float32 weights, the
    singular value decomposition of float64 ones."""
    single = [stack for stack in stacks if stack.dtype != torch.float64]
    decomposed = iter(decompose(single, [stack.gram(torch.float64) for stack in single], skip_below))
    return [_svd(stack, skip_below) if stack.dtype == torch.float64 else next(decomposed) for stack in stacks]


def _judged(stack: Stack, gram: Tensor, values: Tensor, vectors: Tensor, skip_below: float) -> Result:
    values, energy = values.double(), trace(gram)
    kept, dropped = values[:, -stack.rank :].sum(1), values[:, : -stack.rank].clamp(min=0).sum(1)
    gap = values[:, -stack.rank] - values[:, -stack.rank - 1]
    error, allowed = rounding_error(gram), allowed_loss(dropped, kept)
    good = (dropped > error) & ((error <= allowed) | (error.square() <= allowed * gap))
    good |= gram.dtype != stack.dtype  # the Gram matrix is already the float64 one of float32 weights
    vanishing = values[:, -1] < skip_below**2
    status = torch.where(vanishing, VANISHING, good.int() * FOUND)
    return Result(status, vectors[:, :, -stack.rank :], energy, kept)


def _svd(stack: Stack, skip_below: float) -> Result:
    x = stack.scaled(torch.float64)
    u, values, _ = torch.linalg.svd(x if stack.wide else x.mT, full_matrices=False)
    status = torch.where(values[:, 0] < skip_below, VANISHING, FOUND)
    squares = values.square()
    return Result(status, u[:, :, : stack.rank], squares.sum(1), squares[:, : stack.rank].sum(1))
