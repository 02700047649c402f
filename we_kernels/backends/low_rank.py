"""Low-rank projection without a singular value decomposition per layer, on any device.

With its small side first, a layer is X [n, m], n <= m, and its projection needs only the r leading eigenvectors U of
the Gram matrix X X^T: it is U (U^T X). Layers of equal shape and rank are one batch. Three ways to find U, each for
the layers that the one before could not vouch for:

1. subspace iteration from the last projection's U (`_iterate`);
2. the symmetric eigensolver (`_decompose`);
3. the same for a float64 Gram matrix, or for float64 weights a singular value decomposition (`_decompose_precisely`):
   a Gram matrix squares the singular values, so it loses what lies below the root of its precision.

Energy factor, row scales and their inverse go into the small factors, so that the weights are read twice and written
once. The host waits for the device before the first way and after each, to learn which layers are left.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .reference.importance import accumulate_dtype
from .reference.low_rank import RECTIFICATION_EPS

ITERATIONS = 2

ERROR = 4.0
"""Bound on the Frobenius error of a Gram matrix with its eigenvectors, in units of trace x epsilon of the dtype.
Measured for n of 16 to 512, flat to fast-decaying spectra: 1.2 for the matrix, 3 for the energy it costs."""

DISTANCE_TOLERANCE, ENERGY_TOLERANCE = 1e-4, 5e-6
"""Energy that may be lost to the optimal projection, as shares of what that drops and of what it keeps. Half of what is
promised: a distance within 1e-4 (squared, 2e-4) and an energy within 1e-5 of the optimum's."""

GRAM_BLOCK = 128
"""Rows from which a Gram matrix's symmetry is made use of: ResNet-50 cold 0.84 s of CPU time instead of 0.88."""

OPEN, FOUND, VANISHING = 0, 1, 2


def project_low_rank_(
    weights: Sequence[Tensor],
    filter_dims: Sequence[int],
    ranks: Sequence[int],
    row_scales: Sequence[Tensor | None],
    bases: Sequence[Tensor],
    energy_transfer: bool,
    skip_below: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Energy before and kept, float64 [L], and the layers that were skipped, bool [L].

    ``bases`` is empty or holds a tensor [n, r] per layer, zeros if there is none yet; it is overwritten with U.
    """
    with _full_precision(weights[0].device):
        stacks = _stacks(weights, filter_dims, ranks, row_scales, bases)
        grams = [stack.gram(stack.dtype) for stack in stacks]
        before = _scatter(stacks, [_trace(gram) for gram in grams])
        if not before.isfinite().all():  # float32 squares overflow long before float32 weights do
            grams = [stack.gram(torch.float64) for stack in stacks]
            before = _scatter(stacks, [_trace(gram) for gram in grams])
        kept, skipped = before.clone(), torch.zeros_like(before, dtype=torch.bool)
        if not before.isfinite().all():
            return before, kept, ~skipped

        tasks = [task for task in zip(stacks, grams, strict=True) if task[0].rank < task[0].n]
        for find in (_iterate, _decompose, _decompose_precisely):
            results = [find(stack, gram, skip_below) for stack, gram in tasks]
            status = torch.cat([result.status for result in results]).tolist() if results else []
            left = []
            for (stack, gram), result in zip(tasks, results, strict=True):
                own, status = status[: len(stack)], status[len(stack) :]
                found, vanishing, still = ([i for i, s in enumerate(own) if s == x] for x in (FOUND, VANISHING, OPEN))
                if found:
                    part, result = stack.take(found), result.take(found)
                    before[part.members], kept[part.members] = result.energy, result.kept
                    part.project_(result, energy_transfer)
                skipped[stack.take(vanishing).members] = True
                if still:
                    left.append((stack.take(still), gram if len(still) == len(stack) else gram[still]))
            tasks = left
    return before, kept, skipped


class _Result(NamedTuple):
    """What a way found for a stack of B layers."""

    status: Tensor
    """int [B]: OPEN (not good enough), FOUND or VANISHING (the largest singular value is under the limit)."""
    vectors: Tensor
    """[B, n, r]: U, orthonormal columns in any order."""
    energy: Tensor
    """float64 [B]: sum of the squared singular values."""
    kept: Tensor
    """float64 [B]: sum over the kept ones."""

    def take(self, indices: list[int]) -> _Result:
        if len(indices) == len(self.status):
            return self
        return _Result(*(field[indices] for field in self))


@dataclass(frozen=True)
class _Stack:
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

    def take(self, indices: list[int]) -> _Stack:
        if len(indices) == len(self):
            return self
        members, weights, scales, bases = (
            [entries[i] for i in indices] if entries else []
            for entries in (self.members, self.weights, self.scales, self.bases)
        )
        return _Stack(members, weights, scales, bases, self.warm, self.rank)  # type: ignore[arg-type]

    def matrices(self, dtype: torch.dtype) -> Tensor:
        """The weights as [B, N, M]; may be the weights' own memory."""
        rows = [weight.reshape(self.shape) for weight in self.weights]
        return (rows[0].unsqueeze(0) if len(rows) == 1 else torch.stack(rows)).to(dtype)

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
            return _gram(self.scaled(dtype).mT)
        gram, scale = _gram(self.matrices(dtype)), self.scale(dtype)
        return gram if scale is None else gram.mul_(scale).mul_(scale.mT)

    def project_(self, found: _Result, energy_transfer: bool) -> None:
        """Overwrite the weights with their projection and the bases with U."""
        u = found.vectors.to(self.dtype)
        factor = torch.ones_like(found.kept)
        if energy_transfer:
            factor = torch.where(found.kept > 0, found.energy / found.kept, factor).sqrt()
        back, scale = factor.to(self.dtype).view(-1, 1, 1), self.scale(self.dtype)
        if scale is not None:
            back = back * (scale / (scale.square() + RECTIFICATION_EPS))
        x = self.matrices(self.dtype)
        if self.wide:
            coordinates = (u if scale is None else scale * u).mT @ x
            projected = (back * u) @ coordinates
        else:
            coordinates = x @ u
            projected = coordinates.mul_(back if scale is None else back * scale) @ u.mT
        for weight, matrix in zip(self.weights, projected, strict=True):
            weight.copy_(matrix.view(weight.shape))
        for basis, vectors in zip(self.bases, u, strict=False):
            basis.copy_(vectors)


def _iterate(stack: _Stack, gram: Tensor, skip_below: float) -> _Result:
    """Q <- orth(G Q) from the last basis, until `_vouch` has no objection, at most twice.

    No eigensolver is involved, only products, Cholesky factors and triangular solves. A Cholesky factor that does not
    exist is NaN, and so is all that follows from it, which leaves the layer open.
    """
    if not stack.warm:
        energy = _trace(gram)
        return _Result(torch.zeros_like(energy, dtype=torch.int), gram[..., : stack.rank], energy, energy)
    q = torch.stack(stack.bases).to(gram.dtype)
    product = gram @ q
    h = q.mT @ product
    for _ in range(ITERATIONS):
        # G Q = Q H + R is near Q when multiplied by H^-1: one Cholesky-QR makes that orthonormal, however wide the
        # spectrum.
        near = _solve(product, _cholesky(h), both=True)
        q = _solve(near, _cholesky(near.mT @ near), both=False)
        product = gram @ q
        h = q.mT @ product
        result = _vouch(stack, gram, q, product, h, skip_below)
        if (result.status == FOUND).all():
            break
    return result


def _vouch(stack: _Stack, gram: Tensor, q: Tensor, product: Tensor, h: Tensor, skip_below: float) -> _Result:
    """FOUND where the orthonormal Q, with the product G Q and H = Q^T G Q, surely loses no more energy than allowed.

    A basis above the rest of the spectrum by a gap loses at most ||R||^2 / gap, R = G Q - Q H. Lower bound of H's
    spectrum: l = ||H^-4||_F^(-1/4). Upper bound of the rest's: l / 2, if l / 2 - (G - Q H Q^T) is positive definite.
    """
    part = q @ h
    residual = (product - part).norm(dim=(1, 2)).double()
    kept = _trace(h)
    mean = (kept / stack.rank).to(h.dtype)
    inverse = torch.cholesky_inverse(_cholesky(h)) * mean.view(-1, 1, 1)  # near 1: its powers must not overflow
    for _ in range(2):
        inverse = inverse @ inverse
    gap = mean * inverse.norm(dim=(1, 2)) ** -0.25 / 2
    below = torch.baddbmm(gram, part, q.mT, beta=-1)
    below.diagonal(dim1=1, dim2=2).add_(gap.unsqueeze(1))
    separated = torch.linalg.cholesky_ex(below).info == 0

    energy, error = _trace(gram), _error(gram)
    good = separated & ((residual + error).square() <= gap * _allowed(energy, kept)) & (energy - kept > error)
    good &= kept >= stack.rank * skip_below**2  # so the largest singular value, above the mean, is not under the limit
    return _Result(good.int() * FOUND, q, energy, kept)


def _decompose(stack: _Stack, gram: Tensor, skip_below: float) -> _Result:
    """The symmetric eigensolver; open where the Gram matrix is too coarse for the spectrum."""
    values, vectors = torch.linalg.eigh(gram)
    values, energy = values.double(), _trace(gram)
    kept, dropped = values[:, -stack.rank :].sum(1), values[:, : -stack.rank].clamp(min=0).sum(1)
    gap = values[:, -stack.rank] - values[:, -stack.rank - 1]
    error, allowed = _error(gram), _allowed(dropped + kept, kept)
    good = (dropped > error) & ((error <= allowed) | (error.square() <= allowed * gap))
    good |= gram.dtype != stack.dtype  # the Gram matrix is already the float64 one of float32 weights
    vanishing = values[:, -1] < skip_below**2
    status = torch.where(vanishing, VANISHING, good.int() * FOUND)
    return _Result(status, vectors[:, :, -stack.rank :], energy, kept)


def _decompose_precisely(stack: _Stack, gram: Tensor, skip_below: float) -> _Result:
    """What resolves every spectrum down to the rounding of the weights."""
    if stack.dtype != torch.float64:
        return _decompose(stack, stack.gram(torch.float64), skip_below)
    x = stack.scaled(torch.float64)
    u, values, _ = torch.linalg.svd(x if stack.wide else x.mT, full_matrices=False)
    status = torch.where(values[:, 0] < skip_below, VANISHING, FOUND)
    squares = values.square()
    return _Result(status, u[:, :, : stack.rank], squares.sum(1), squares[:, : stack.rank].sum(1))


def _gram(x: Tensor) -> Tensor:
    """X X^T; of large ones the blocks above the diagonal are copied from below it."""
    n = x.shape[1]
    if n < 2 * GRAM_BLOCK:
        return x @ x.mT
    gram = x.new_empty((len(x), n, n))
    first, second = slice(n // 2), slice(n // 2, n)
    gram[:, first, first] = _gram(x[:, first])
    gram[:, second, second] = _gram(x[:, second])
    gram[:, second, first] = x[:, second] @ x[:, first].mT
    gram[:, first, second] = gram[:, second, first].mT
    return gram


def _error(gram: Tensor) -> Tensor:
    info = torch.finfo(gram.dtype)
    return ERROR * info.eps * _trace(gram) + info.tiny * gram.shape[1] ** 2  # the latter for squares that underflow


def _allowed(energy: Tensor, kept: Tensor) -> Tensor:
    return torch.minimum(DISTANCE_TOLERANCE * (energy - kept), ENERGY_TOLERANCE * kept)


def _trace(gram: Tensor) -> Tensor:
    trace: Tensor = gram.diagonal(dim1=1, dim2=2).double().sum(1)
    return trace


def _cholesky(matrix: Tensor) -> Tensor:
    """Lower factor, NaN where the matrix is not positive definite."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    checked: Tensor = torch.where((info == 0).view(-1, 1, 1), factor, torch.nan)
    return checked


def _solve(matrix: Tensor, lower: Tensor, both: bool) -> Tensor:
    """``matrix`` (L L^T)^-1, or only ``matrix`` L^-T."""
    half = torch.linalg.solve_triangular(lower.mT, matrix, upper=True, left=False)
    solved: Tensor = torch.linalg.solve_triangular(lower, half, upper=False, left=False) if both else half
    return solved


def _stacks(
    weights: Sequence[Tensor],
    filter_dims: Sequence[int],
    ranks: Sequence[int],
    row_scales: Sequence[Tensor | None],
    bases: Sequence[Tensor],
) -> list[_Stack]:
    views = [weight.movedim(dim, 0) for weight, dim in zip(weights, filter_dims, strict=True)]
    warm = torch.stack([basis[:, :1].any() for basis in bases]).tolist() if bases else [False] * len(views)
    stacks = defaultdict(list)
    for i, view in enumerate(views):
        scale = row_scales[i]
        shape = (view.shape[0], view.shape[1:].numel())
        stacks[shape, view.dtype, ranks[i], warm[i], None if scale is None else scale.dtype].append(i)
    return [
        _Stack(
            members,
            [views[i] for i in members],
            [scale for i in members if (scale := row_scales[i]) is not None],
            [bases[i] for i in members] if bases else [],
            warm[members[0]],
            ranks[members[0]],
        )
        for members in stacks.values()
    ]


def _scatter(stacks: Sequence[_Stack], values: Sequence[Tensor]) -> Tensor:
    """Values per layer of every stack, in the order of the call."""
    order = [member for stack in stacks for member in stack.members]
    joined = torch.cat(list(values))
    result = torch.empty_like(joined)
    result[order] = joined
    return result


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """No TensorFloat-32, no bfloat16 products, no autocast: the bounds above are those of whole float32."""
    matmuls: tuple[Any, ...] = (torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None))
    with torch.autocast(device.type, enabled=False):
        if all(hasattr(matmul, "fp32_precision") for matmul in matmuls):
            # The older setting cannot even be read once a user has touched this one.
            chosen = [matmul.fp32_precision for matmul in matmuls]
            try:
                for matmul in matmuls:
                    matmul.fp32_precision = "ieee"
                yield
            finally:
                for matmul, precision in zip(matmuls, chosen, strict=True):
                    matmul.fp32_precision = precision
        else:  # torch < 2.9
            former = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("highest")
            try:
                yield
            finally:
                torch.set_float32_matmul_precision(former)
