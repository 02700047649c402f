"""Layers whose Gram matrices are of one size as one batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..runtime.view import BankView
from .bounds import Result
from .parallel import run, threads
from .rule import ProjectionRule
from .stack import Stack, joined

PARTS = 4
"""Of the work of a thread, so that all end at nearly the same time."""

EIGENSOLVER = 8
"""What a symmetric eigenproblem costs, in products of its size, with MKL and rows in the hundreds."""

ALONE = 1 << 16
"""Weights from which, on a CPU, a layer is a stack of its own: it is worth its own products, and needs no copy."""


@dataclass(frozen=True)
class Batch:
    """B layers that share n, rank, dtype of the arithmetic and warmth: what finds U sees no more of them than that.

    They are kept as stacks of one shape each; the order of a batch is theirs, one after the other.
    """

    stacks: list[Stack]

    def __len__(self) -> int:
        return sum(self.lengths)

    @property
    def lengths(self) -> list[int]:
        """Of the stacks."""
        return [len(stack) for stack in self.stacks]

    @property
    def members(self) -> list[int]:
        """Their positions in the call's list."""
        return [member for stack in self.stacks for member in stack.members]

    @property
    def rank(self) -> int:
        """Of the projection."""
        return self.stacks[0].rank

    @property
    def reduced(self) -> bool:
        """The rank is smaller than the matrices' own; if not, only the energy is wanted."""
        return self.stacks[0].reduced

    @property
    def warm(self) -> bool:
        """The bases hold the last projection's."""
        return self.stacks[0].warm

    @property
    def dtype(self) -> torch.dtype:
        """Of the arithmetic."""
        return self.stacks[0].dtype

    def take(self, indices: list[int]) -> Batch:
        """Some of the layers, in ascending order."""
        if len(indices) == len(self):
            return self
        stacks, start = [], 0
        for stack in self.stacks:
            if own := [i - start for i in indices if start <= i < start + len(stack)]:
                stacks.append(stack.take(own))
            start += len(stack)
        return Batch(stacks)

    def split(self, most: int) -> list[Batch]:
        """Parts of at most so much work, but of at least one layer."""
        layers = max(1, most * len(self) // self.work)
        order = list(range(len(self)))
        return [self.take(order[i : i + layers]) for i in range(0, len(self), layers)]

    @property
    def work(self) -> int:
        """Multiplications, about, to find U and project."""
        way = 1 if self.warm else EIGENSOLVER
        return sum(len(stack) * way * stack.n**3 + 2 * stack.rank * stack.numel for stack in self.stacks)

    def basis(self, dtype: torch.dtype) -> Tensor:
        """The last projection's U, [B, n, r]; may be the bases' own memory."""
        return joined([basis for stack in self.stacks for basis in stack.bases]).to(dtype)

    def project_(self, found: Result, energy_transfer: bool, dtype: torch.dtype) -> Tensor:
        """Overwrite the weights with their projection, computed in this dtype, and the bases with U.

        Returns:
            The kept energy, float64 [B]; NaN of a layer that was left alone, as its projection exceeds its own dtype.
        """
        parts = zip(self.stacks, found.split(self.lengths), strict=True)
        return torch.cat([stack.project_(part, energy_transfer, dtype) for stack, part in parts])


def make_batches(bank: BankView, rule: ProjectionRule, bases: Sequence[Tensor]) -> list[Batch]:
    """Layers of equal shape, dtype, rank and state as stacks, but for large ones on a CPU; these as batches, of which
    every thread gets several."""
    views = [weight.movedim(dim, 0) for weight, dim in zip(bank.weights, bank.filter_dims, strict=True)]
    warm = torch.stack([basis[:, :1].any() for basis in bases]).tolist() if bases else [False] * len(views)
    alike = defaultdict(list)
    for i, view in enumerate(views):
        scale = rule.row_scales[i]
        shape = (view.shape[0], view.shape[1:].numel())
        alone = i if view.device.type == "cpu" and view.numel() >= ALONE else None
        alike[shape, view.dtype, rule.ranks[i], warm[i], None if scale is None else scale.dtype, alone].append(i)
    batches = defaultdict(list)
    for members in alike.values():
        stack = Stack(
            members,
            [views[i] for i in members],
            [scale for i in members if (scale := rule.row_scales[i]) is not None],
            [bases[i] for i in members] if bases else [],
            warm[members[0]],
            rule.ranks[members[0]],
        )
        batches[stack.n, stack.rank, stack.dtype, stack.warm].append(stack)
    made = [Batch(stacks) for stacks in batches.values()]
    work = sum(batch.work for batch in made)
    count = threads(work, views[0].device)
    return made if count == 1 else [part for batch in made for part in batch.split(work // (PARTS * count))]


def make_grams(batches: Sequence[Batch], dtype: torch.dtype | None = None) -> list[Tensor]:
    """For each batch X X^T [B, n, n], or, where the rank is not reduced, only the energy [B, 1, 1].

    In the dtype of the arithmetic if none is given.
    """
    grams, parts, work = [], [], []
    for batch in batches:
        first = batch.stacks[0]
        side = first.n if first.reduced else 1
        gram = torch.empty((len(batch), side, side), dtype=dtype or batch.dtype, device=first.weights[0].device)
        grams.append(gram)
        for stack, out in zip(batch.stacks, gram.split(batch.lengths), strict=True):
            parts.append((stack, out))
            work.append(side * stack.numel)
    if parts:
        run(lambda part: part[0].gram_into(part[1]), parts, work, parts[0][1].device)
    return grams
