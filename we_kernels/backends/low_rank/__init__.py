"""Low-rank projection without a singular value decomposition per layer, on any device.

With its small side first, a layer is X [n, m], n <= m, and its projection needs only the r leading eigenvectors U of
the Gram matrix G = X X^T: it is U (U^T X). Three ways to find U, each for the layers that the one before could not
vouch for:

1. subspace iteration from the last projection's U (`subspace`);
2. the symmetric eigensolver (`eigen`);
3. the same for a float64 Gram matrix, or for float64 weights a singular value decomposition: a Gram matrix squares the
   singular values, so it loses what lies below the root of its precision.

Energy factor, row scales and their inverse go into the small factors, so that the weights are read twice and written
once. The host waits for the device before the first way and after each, to learn which layers are left.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .bounds import FOUND, OPEN, VANISHING, trace
from .eigen import decompose, decompose_precisely
from .precision import full_precision
from .stack import Stack, make_stacks
from .subspace import iterate

WAYS = [iterate, decompose, decompose_precisely]


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
    with full_precision(weights[0].device):
        stacks = make_stacks(weights, filter_dims, ranks, row_scales, bases)
        grams = [stack.gram(stack.dtype) for stack in stacks]
        before = _scatter(stacks, [trace(gram) for gram in grams])
        if not before.isfinite().all():  # float32 squares overflow long before float32 weights do
            grams = [stack.gram(torch.float64) for stack in stacks]
            before = _scatter(stacks, [trace(gram) for gram in grams])
        kept, skipped = before.clone(), torch.zeros_like(before, dtype=torch.bool)
        if not before.isfinite().all():
            return before, kept, ~skipped

        tasks = [task for task in zip(stacks, grams, strict=True) if task[0].rank < task[0].n]
        for find in WAYS:
            if not tasks:
                break
            results = find([stack for stack, _ in tasks], [gram for _, gram in tasks], skip_below)
            status = torch.cat([result.status for result in results]).tolist()
            left = []
            for (stack, gram), result in zip(tasks, results, strict=True):
                own, status = status[: len(stack)], status[len(stack) :]
                found, vanishing, still = ([i for i, s in enumerate(own) if s == x] for x in (FOUND, VANISHING, OPEN))
                if found:
                    part, result = stack.take(found), result.take(found)
                    before[part.members] = result.energy
                    kept[part.members] = part.project_(result, energy_transfer)
                skipped[stack.take(vanishing).members] = True
                if still:
                    left.append((stack.take(still), gram if len(still) == len(stack) else gram[still]))
            tasks = left
    return before, kept, skipped


def _scatter(stacks: Sequence[Stack], values: Sequence[Tensor]) -> Tensor:
    """Values per layer of every stack, in the order of the call."""
    order = [member for stack in stacks for member in stack.members]
    joined = torch.cat(list(values))
    result = torch.empty_like(joined)
    result[order] = joined
    return result
