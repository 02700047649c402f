"""Way 1: subspace iteration from the last projection's U, without an eigensolver.

Q holds the last U, H = Q^T G Q, R = G Q - Q H. A step takes Q to the range of (G - s) Q, with s half of rho, an upper
bound of the spectrum of G outside of Q. With J = (H - s)^-1 that range has the basis F = (G - s) Q J = Q + R J, near Q,
and F^T F = 1 + D, D = (R J)^T R J.

What the new basis loses is known before it is used, if H > rho. Let L1 and L2 <= rho be the eigenvalues that the best
basis keeps and drops, A and B the parts of Q in the spaces of both. Frobenius norms:

- B H - L2 B is a part of R, so for every function g, column by column in H's eigenvectors,
  ||B g(H)|| <= ||R (H - rho)^-1 g(H)||.
- The parts of the new basis are (L1 - s) A and (L2 - s) B, where |L2 - s| <= s, and A^T (L1 - s) A >= H - rho. So it
  loses at most s^2 k ||B (H - rho)^-1/2||^2 <= s^2 k c^3 tr(J D), k = 1 + s ||J||, c = 1 / (1 - s ||J||), since
  (H - rho)^-1 <= c J.
- The best basis is the range of [1; Y] in Q and its complement, and keeps tr H + tr(R^T Y). From Y's Riccati equation,
  ||Y (H - rho)^1/2||^2 <= tr(R^T Y), so that tr(R^T Y) <= ||R (H - rho)^-1/2||^2 <= c tr((H - s) D): a lower bound of
  what the best basis drops.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .batch import Batch
from .bounds import FOUND, Result, allowed_loss, rounding_error, trace

POWERS = 4, 12
"""Of each step: the second is for what has moved far, where a closer bound decides."""

PROBES, SMALLEST_PROBE = 16, 0.6
"""The norm of 16 normally distributed numbers is under 0.6 with a probability of 3e-11."""


def iterate(batch: Batch, gram: Tensor, energy: Tensor, skip_below: float) -> Result:
    """At most two steps, the second for what the first may not have brought close enough.

    A Cholesky factor that does not exist is NaN, and so is all that follows from it, which leaves the layer open.
    """
    least = batch.rank * skip_below**2
    if not batch.warm:
        return Result(torch.zeros_like(energy, dtype=torch.int), gram[..., : batch.rank], energy, None)
    q, good = _step(gram, batch.basis(gram.dtype), energy, least, POWERS[0])
    left = (~good).nonzero().squeeze(1)
    if len(left):
        q[left], good[left] = _step(gram[left], q[left], energy[left], least, POWERS[1])
    return Result(good.int() * FOUND, q, energy, None)


def _step(gram: Tensor, q: Tensor, energy: Tensor, least: float, power: int) -> tuple[Tensor, Tensor]:
    """The next Q, and bool [B]: it loses no more energy than is allowed, and keeps at least ``least``."""
    unit = energy / q.shape[2]  # all below is in this unit: powers must not overflow
    error = rounding_error(energy, gram) / unit
    product = (gram @ q).div_(_column(unit, gram))
    h = q.mT @ product
    kept = trace(h)
    shift = (_largest_outside(gram, q, unit, power) + error) / 2
    product.addcmul_(_column(shift, gram), q, value=-1)
    h.diagonal(dim1=1, dim2=2).sub_(_column(shift, gram).squeeze(2))
    inverse = torch.cholesky_inverse(_cholesky(h))
    near = product @ inverse
    moved = near.mT @ near
    new = torch.linalg.solve_triangular(_cholesky(moved).mT, near, upper=True, left=False)

    moved.diagonal(dim1=1, dim2=2).sub_(1)
    largest = (inverse @ inverse).norm(dim=(1, 2)).double().sqrt()
    c = 1 / (1 - shift * largest)
    root = shift * _inner(inverse, moved).sqrt() + error * largest.sqrt()
    lost = c**3 * (1 + shift * largest) * root**2
    dropped = energy / unit - kept - c * _inner(h, moved)
    good = (c > 0) & (dropped > error) & (lost <= allowed_loss(dropped, kept)) & (kept * unit >= least)
    return new, good


def _largest_outside(gram: Tensor, q: Tensor, unit: Tensor, power: int) -> Tensor:
    """Float64 [B], in ``unit``: bound on the eigenvalues of (1 - Q Q^T) G (1 - Q Q^T), from powers of it.

    That power times random vectors is at least its largest eigenvalue's times their part in that direction.
    """
    generator = torch.Generator(gram.device).manual_seed(0)
    v = torch.randn((gram.shape[1], PROBES), dtype=gram.dtype, device=gram.device, generator=generator)
    v = v - q @ (q.mT @ v)
    log = torch.zeros_like(unit)
    for _ in range(power):
        v = (gram @ v).div_(_column(unit, gram))
        v -= q @ (q.mT @ v)
        norm = v.norm(dim=(1, 2)).clamp_min(torch.finfo(v.dtype).tiny)
        v /= norm.view(-1, 1, 1)
        log += norm.double().log()
    bound: Tensor = ((log - math.log(SMALLEST_PROBE)) / power).exp()
    return bound


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((1, 2)).double().clamp_min(0)


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype).view(-1, 1, 1)


def _cholesky(matrix: Tensor) -> Tensor:
    """Lower factor, NaN where the matrix is not positive definite."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    return torch.where((info == 0).view(-1, 1, 1), factor, torch.nan)
