"""Low-rank projection without a singular value decomposition per layer, on any device.

With its small side first, a layer is X [n, m], n <= m, and its projection needs only the r leading eigenvectors U of
the Gram matrix G = X X^T: it is U (U^T X). Three ways to find U, each for the layers that the one before could not
vouch for:

1. subspace iteration from the last projection's U (`subspace`);
2. the symmetric eigensolver (`eigen`);
3. the same for a float64 Gram matrix, or for float64 weights a singular value decomposition: a Gram matrix squares the
   singular values, so it loses what lies below the root of its precision.

Energy factor, row scales and their inverse go into the small factors, so that the weights are read twice and written
once. Each batch of layers goes through the ways on its own; the host waits for the device before and after every way,
to learn which layers are left.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..runtime.view import BankView
from .batch import Batch, make_batches, make_grams
from .bounds import FOUND, OPEN, VANISHING, trace
from .eigen import decompose, decompose_precisely
from .parallel import run
from .precision import full_precision
from .rule import ProjectionRule
from .subspace import iterate

MOST = 1 / 16
"""Share of the largest number up to which an energy leaves room for sums of it."""

WAYS = [iterate, decompose, decompose_precisely]


def project_low_rank_(bank: BankView, rule: ProjectionRule, bases: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Energy before and kept, float64 [L], and the layers that were skipped, bool [L].

    ``bases`` is empty or holds a tensor [n, r] per layer, zeros if there is none yet; it is overwritten with U.
    """
    device = bank.device
    with full_precision(device):
        batches = make_batches(bank, rule, bases)
        grams = make_grams(batches)
        energies = [trace(gram) for gram in grams]
        # Squares overflow long before the weights do.
        if not torch.cat([e / torch.finfo(b.dtype).max for e, b in zip(energies, batches, strict=True)]).le(MOST).all():
            grams = make_grams(batches, torch.float64)
            energies = [trace(gram) for gram in grams]
        before = torch.cat(energies)
        settled = [before, before, torch.ones_like(before, dtype=torch.bool)]
        if before.isfinite().all():
            tasks, work = list(zip(batches, grams, energies, strict=True)), [batch.work for batch in batches]
            results = run(lambda task: _settle(*task, rule), tasks, work, device)
            settled = [torch.cat(values) for values in zip(*results, strict=True)]
        members = [member for batch in batches for member in batch.members]
        position = torch.tensor(members, dtype=torch.int64, device=device).argsort()
        energy, kept, skipped = (values[position] for values in settled)
    return energy, kept, skipped


def _settle(batch: Batch, gram: Tensor, energy: Tensor, rule: ProjectionRule) -> tuple[Tensor, Tensor, Tensor]:
    """Project a batch; energy before and kept, and the layers that were skipped, in its order."""
    before, kept, skipped = energy.clone(), energy.clone(), torch.zeros_like(energy, dtype=torch.bool)
    left = list(range(len(batch))) if batch.reduced else []
    for find in WAYS:
        if not left:
            break
        part = (gram, energy) if len(left) == len(batch) else (gram[left], energy[left])
        result = find(batch.take(left), *part, rule.skip_below)
        status = result.status.tolist()
        found, vanishing, still = ([i for i, s in enumerate(status) if s == x] for x in (FOUND, VANISHING, OPEN))
        if found:
            members, result = [left[i] for i in found], result.take(found)
            before[members] = result.energy
            # What is beyond the squares of its arithmetic is projected in the precision of its Gram matrix, too.
            kept[members] = batch.take(members).project_(result, rule.energy_transfer, gram.dtype)
            skipped[members] = kept[members].isnan()
        if vanishing:
            skipped[[left[i] for i in vanishing]] = True
        left = [left[i] for i in still]
    return before, kept, skipped
