"""A classification data set in memory, and the batches of an epoch."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..parallel.ranks import ALONE, Ranks
from ..randomness import generator
from .augmentation import Augmentation


@dataclass(frozen=True)
class Dataset:
    """Images uint8 [N, C, H, W] and labels int64 [N], in a fixed training and a fixed test part."""

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    num_classes: int
    augmentation: Augmentation

    @property
    def in_channels(self) -> int:
        """C."""
        return self.train_images.shape[1]

    @cached_property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel of the training images, float32 [C, 1, 1]."""
        channels = self.train_images.transpose(0, 1).flatten(1)
        # From 256 counts per channel: no float copy of the images.
        counts = torch.stack([torch.bincount(channel, minlength=256) for channel in channels]).double()
        levels = torch.arange(256, dtype=torch.float64, device=counts.device)
        share = counts / counts.sum(1, keepdim=True)
        mean = share @ levels
        deviation = (share @ levels.square() - mean.square()).clamp(min=0).sqrt()
        deviation = torch.where(deviation > 0, deviation, 1.0)
        return mean.float()[:, None, None], deviation.float()[:, None, None]

    def test_sample(self, count: int) -> Tensor:
        """At most so many test images, always the same ones: an even spread over the images in the order of their
        classes, so that each class has its share, however the images are stored.
        """
        total = len(self.test_images)
        if count >= total:
            return self.test_images
        by_class = self.test_labels.argsort(stable=True)
        return self.test_images[by_class[torch.arange(count, device=by_class.device) * total // count]]

    def to(self, device: torch.device) -> Dataset:
        """The data set with all tensors on a device."""
        tensors: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **tensors)


def batch_sizes(images: int, batch_size: int, ranks: int = 1) -> list[int]:
    """Of the batches of an epoch, over all ranks.

    A last batch of less than two images for each rank joins the batch before it, since BatchNorm cannot train on one
    value per channel.
    """
    whole, rest = divmod(images, batch_size)
    sizes = [batch_size] * whole + ([rest] if rest else [])
    if len(sizes) > 1 and sizes[-1] < 2 * ranks:
        sizes[-2:] = [sum(sizes[-2:])]
    return sizes


def training_batches(
    dataset: Dataset, batch_size: int, seed: int, epoch: int, augment: bool, ranks: Ranks = ALONE
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Each training image once, uint8; order and augmentation depend on (seed, epoch) alone.

    The batches are of `batch_sizes`; each rank gets its part of each.
    """
    images, labels = dataset.train_images, dataset.train_labels
    order = torch.randperm(len(images), generator=generator("order", seed, epoch)).to(images.device)
    draws = generator("augmentation", seed, epoch)
    for whole in order.split(batch_sizes(len(images), batch_size, ranks.count)):
        part = ranks.part(len(whole))
        own = whole[part]
        batch = images[own]
        yield (dataset.augmentation(batch, draws, len(whole), part) if augment else batch), labels[own]


def check_dataset(dataset: Dataset) -> Dataset:
    """The data set itself.

    Raises:
        UserError: parts, shapes or labels do not fit together.
    """
    for part, images, labels in (
        ("training", dataset.train_images, dataset.train_labels),
        ("test", dataset.test_images, dataset.test_labels),
    ):
        if len(images) != len(labels) or len(images) == 0:
            raise UserError(f"{dataset.name}: {len(images)} {part} images but {len(labels)} labels")
        if images.dtype != torch.uint8 or images.shape[1:] != dataset.train_images.shape[1:]:
            raise UserError(f"{dataset.name}: {part} images must be uint8 of one shape, got {images.shape}")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= dataset.num_classes:
            raise UserError(
                f"{dataset.name}: {part} labels must be 0 to {dataset.num_classes - 1}, got {low} to {high}"
            )
    classes = set(dataset.train_labels.tolist())
    if len(classes) < 2:
        raise UserError(
            f"{dataset.name}: all training images have the label {classes.pop()}; there must be two classes"
        )
    if unknown := sorted(set(dataset.test_labels.tolist()) - classes):
        raise UserError(
            f"{dataset.name}: the test images have the label {unknown[0]}, which no training image has; what is not "
            "trained cannot be tested"
        )
    return dataset
