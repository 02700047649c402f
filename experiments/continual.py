"""Streams of tasks for small networks: which images with which labels, in which order, all from the seed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from weight_evolution.training.data import load_data
from weight_evolution.training.randomness import generator

LARGEST = 16
"""Larger images are averaged down, 28 x 28 to 14 x 14 and 32 x 32 to 16 x 16: many networks in little time."""


@dataclass(frozen=True)
class Images:
    """Of a data set: float32 [N, C, H, W], standardised by the training images, and int64 labels."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor

    @property
    def classes(self) -> int:
        """How many."""
        return int(self.train_labels.max()) + 1


def load_images(name: str, root: Path | None = None) -> Images:
    """``digits``, ``fashion-mnist`` with its folder, or ``npz:PATH`` (`weight_evolution.training.data.npz`).

    Raises:
        UserError: says what is missing or wrong.
    """
    dataset = load_data(name, root)
    return _standardised(dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels)


def has_true_labels(labels: str, task: int) -> bool:
    """Whether the images of a task have their own labels, so that held-out images tell something."""
    return labels == "true" or (labels == "noise" and task % 2 == 1)


@dataclass(frozen=True)
class Stream:
    """The tasks of one seed.

    ``labels``: "random", the same images with new random labels in every task; "noise", the same images with random
    labels in even tasks and their own in odd ones; "pairs", images of two classes, new ones in every task; "true", the
    same images with their own labels.
    """

    images: Images
    labels: str
    count: int
    """Images of a task, at most."""
    seed: int

    @property
    def classes(self) -> int:
        """Of a task."""
        return 2 if self.labels == "pairs" else self.images.classes

    def task(self, number: int) -> tuple[Tensor, Tensor]:
        """Indices of its training images, and their labels, int64 [count]."""
        if self.labels == "pairs":
            return self._pair(number)
        pool = self.images.train_labels
        indices = torch.randperm(len(pool), generator=generator("images", self.seed))[: self.count]
        if has_true_labels(self.labels, number):
            return indices, pool[indices]
        draws = generator("labels", self.seed, number)
        return indices, torch.randint(self.classes, (len(indices),), generator=draws)

    def order(self, number: int, length: int) -> Tensor:
        """int64 [length], positions in the task: every image once, then again in another order."""
        draws = generator("order", self.seed, number)
        size = len(self.task(number)[0])
        return torch.cat([torch.randperm(size, generator=draws) for _ in range(-(-length // size))])[:length]

    def _pair(self, number: int) -> tuple[Tensor, Tensor]:
        draws = generator("pair", self.seed, number)
        classes = torch.randperm(self.images.classes, generator=draws)[:2]
        each = min(self.count // 2, int(torch.bincount(self.images.train_labels).min()))
        found = [torch.nonzero(self.images.train_labels == c).flatten() for c in classes]
        indices = torch.cat([own[torch.randperm(len(own), generator=draws)[:each]] for own in found])
        return indices, torch.arange(2).repeat_interleave(each)


def _standardised(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> Images:
    train, test = _averaged(train), _averaged(test)
    deviation, mean = torch.std_mean(train, (0, 2, 3), keepdim=True)
    return Images((train - mean) / deviation, train_labels, (test - mean) / deviation, test_labels)


def _averaged(images: Tensor) -> Tensor:
    factor = -(-max(images.shape[2:]) // LARGEST)
    parts = [functional.avg_pool2d(part.float(), factor) for part in images.split(10_000)]
    return torch.cat(parts)
