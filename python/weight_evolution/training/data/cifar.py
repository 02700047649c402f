"""CIFAR-10 and CIFAR-100 through torchvision: 50,000 + 10,000 colour images 32 x 32."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from weight_evolution.tables import first_line

from ..errors import UserError
from .augmentation import Augmentation
from .dataset import Dataset

DEFAULT_ROOT = Path("data")


def load_cifar(classes: int, root: Path | None = None, download: bool = False) -> Dataset:
    """``classes`` is 10 or 100.

    Raises:
        UserError: torchvision is not installed, or the files are missing or corrupt.
    """
    root = DEFAULT_ROOT if root is None else root
    try:
        from torchvision import datasets
    except ImportError:
        raise UserError(f"cifar{classes} is read through torchvision: pip install 'weight-evolution[vision]'") from None
    reader = {10: datasets.CIFAR10, 100: datasets.CIFAR100}[classes]
    parts: list[Tensor] = []
    for train in (True, False):
        try:
            part = reader(str(root), train=train, download=download)
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"CIFAR-{classes} is not in {root} or is corrupt; pass --root FOLDER, or --download to fetch it there "
                f"({first_line(error)})"
            ) from None
        parts += [torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets)]
    train_images, train_labels, test_images, test_labels = parts
    augmentation = Augmentation(padding=4, flip=True)
    return Dataset(f"cifar{classes}", train_images, train_labels, test_images, test_labels, classes, augmentation)
