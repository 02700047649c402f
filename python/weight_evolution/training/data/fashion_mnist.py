"""Fashion-MNIST: 60,000 + 10,000 grey images 28 x 28 of ten kinds of clothes."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ..errors import UserError
from .augmentation import Augmentation
from .dataset import Dataset
from .idx import find_idx, read_idx

DEFAULT_ROOT = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's and Ubuntu's package dataset-fashion-mnist puts the files."""

_CLASSES = 10


def load_fashion_mnist(root: Path | None = None) -> Dataset:
    """Read from the four standard IDX files in ``root``, plain or .gz.

    Raises:
        UserError: a file is missing (says how to get it) or corrupt.
    """
    root = DEFAULT_ROOT if root is None else root
    train_images, train_labels = _read_part(root, "train")
    test_images, test_labels = _read_part(root, "t10k")
    if train_images.shape[1:] != test_images.shape[1:]:
        raise UserError(f"{root}: training and test images differ in size")
    return Dataset(
        "fashion-mnist", train_images, train_labels, test_images, test_labels, _CLASSES, Augmentation(flip=True)
    )


def _read_part(root: Path, part: str) -> tuple[Tensor, Tensor]:
    image_file, label_file = _locate(root, f"{part}-images-idx3-ubyte"), _locate(root, f"{part}-labels-idx1-ubyte")
    images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
    if len(images) != len(labels):
        raise UserError(f"{image_file} has {len(images)} images but {label_file} {len(labels)} labels")
    if int(labels.max()) >= _CLASSES:
        raise UserError(f"{label_file} has label {int(labels.max())}; labels must be 0 to {_CLASSES - 1}")
    return images.unsqueeze(1), labels.long()


def _locate(root: Path, stem: str) -> Path:
    path = find_idx(root, stem)
    if path is None:
        raise UserError(
            f"Fashion-MNIST: no {stem} or {stem}.gz in {root}; on Debian or Ubuntu run `apt install "
            "dataset-fashion-mnist`, elsewhere get the files from https://github.com/zalandoresearch/fashion-mnist "
            "and pass --root FOLDER"
        )
    return path
