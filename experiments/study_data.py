"""Images of the study on a device, and the batches of each seed, with flips and crops, the same on every device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from weight_evolution.training import UserError
from weight_evolution.training.data import load_data
from weight_evolution.training.randomness import generator

LARGEST_HELD_OUT = 5000


@dataclass(frozen=True)
class Pool:
    """A data set: float32 [N, C, H, W], standardised by the training images, and int64 labels.

    The held-out images are the last of the training images, a fifth of them but at most 5,000, and are trained on by
    nobody; training sets are drawn from the others.
    """

    train: Tensor
    train_labels: Tensor
    held_out: Tensor
    held_out_labels: Tensor
    test: Tensor
    test_labels: Tensor
    flip: bool
    """Whether a mirrored image is one of its class."""

    @property
    def padding(self) -> int:
        """Of crops: CIFAR's share, an eighth of a side."""
        return self.train.shape[-1] // 8

    @cached_property
    def padded(self) -> Tensor:
        """The training images with zeros around, [N, H, W, C]."""
        return functional.pad(self.train, [self.padding] * 4).permute(0, 2, 3, 1).contiguous()

    @property
    def classes(self) -> int:
        """How many."""
        return int(self.train_labels.max()) + 1


def load_pool(name: str, root: Path | None, size: int, device: torch.device) -> Pool:
    """``digits``, ``fashion-mnist``, ``cifar10`` or ``npz:PATH``, averaged down to at most ``size`` pixels a side.

    Raises:
        UserError: says what is missing or wrong.
    """
    dataset = load_data(name, root)
    train, test = (_averaged(images.to(device), size) for images in (dataset.train_images, dataset.test_images))
    kept = len(train) - min(LARGEST_HELD_OUT, len(train) // 5)
    deviation, mean = torch.std_mean(train[:kept], (0, 2, 3), keepdim=True)
    train, test = (train - mean) / deviation, (test - mean) / deviation
    labels = dataset.train_labels.to(device)
    return Pool(
        train[:kept],
        labels[:kept],
        train[kept:],
        labels[kept:],
        test,
        dataset.test_labels.to(device),
        dataset.augmentation.flip,
    )


@dataclass(frozen=True)
class Stream:
    """What decides about the batches of a network."""

    seed: int
    """Of the training images, their noisy labels and their order."""
    network: int = 0
    """Further networks of a seed train on its images in orders of their own."""


class Batches:
    """Batches of several streams at once; what a stream gives does not depend on the others.

    Args:
        pool: on the device that they are made on.
        streams: any number.
        count: training images of a seed, drawn from the pool.
        batch_size: of every batch; images that are left over at the end of an epoch's order are left out.
        label_noise: share of the training images that have a label drawn from all classes instead of their own.

    Raises:
        UserError: the pool has too few images.
    """

    def __init__(
        self, pool: Pool, streams: Sequence[Stream], count: int, batch_size: int, label_noise: float = 0.0
    ) -> None:
        if not batch_size <= count <= len(pool.train):
            raise UserError(
                f"--images must be from the batch size, {batch_size}, to {len(pool.train)}, which the data set has "
                f"without the held-out ones; got {count}"
            )
        self._pool, self._streams, self._count, self._size = pool, list(streams), count, batch_size
        device = pool.train.device
        chosen = [
            torch.randperm(len(pool.train), generator=generator("images", stream.seed))[:count] for stream in streams
        ]
        self._chosen = torch.stack(chosen).to(device)
        self._labels = pool.train_labels[self._chosen]
        for own, stream in zip(self._labels, streams, strict=True):
            _add_noise_(own, stream.seed, label_noise, pool.classes)

    @property
    def per_epoch(self) -> int:
        """Batches."""
        return self._count // self._size

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Images [S, N, C, H, W] and labels [S, N] of its batches."""
        pool = self._pool
        draws = [self._draw(stream, number) for stream in self._streams]
        order, *places = (torch.stack(part).to(self._chosen.device) for part in zip(*draws, strict=True))
        down, right = (torch.arange(length, device=order.device) for length in pool.train.shape[2:])
        for first in range(0, self.per_epoch * self._size, self._size):
            part = slice(first, first + self._size)
            top, left, mirrored = (place[:, part, None] for place in places)
            rows, columns = top + down, left + torch.where(mirrored, right.flip(0), right)
            which = order[:, part]
            images = self._chosen.gather(1, which)[..., None, None]
            cropped = pool.padded[images, rows[..., :, None], columns[..., None, :]]
            yield cropped.movedim(-1, 2), self._labels.gather(1, which)

    def _draw(self, stream: Stream, epoch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        order = torch.randperm(self._count, generator=generator("order", stream.seed, stream.network, epoch))
        draws = generator("augmentation", stream.seed, stream.network, epoch)
        top, left = torch.randint(2 * self._pool.padding + 1, (2, self._count), generator=draws)
        mirrored = torch.rand(self._count, generator=draws) < (0.5 if self._pool.flip else 0.0)
        return order, top, left, mirrored


def _add_noise_(labels: Tensor, seed: int, share: float, classes: int) -> None:
    draws = generator("label noise", seed)
    noisy = (torch.rand(len(labels), generator=draws) < share).to(labels.device)
    others = torch.randint(classes, (len(labels),), generator=draws).to(labels.device)
    labels.copy_(torch.where(noisy, others, labels))


def _averaged(images: Tensor, size: int) -> Tensor:
    factor = -(-max(images.shape[2:]) // size)
    parts = [functional.avg_pool2d(part.float(), factor) for part in images.split(10_000)]
    return torch.cat(parts)
