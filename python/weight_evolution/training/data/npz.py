"""A data set of one's own as a file of ``numpy.savez``."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError, needed
from .augmentation import Augmentation
from .dataset import Dataset

NAMES = ("train_images", "train_labels", "test_images", "test_labels")


def load_npz(path: Path) -> Dataset:
    """The arrays ``train_images``, ``test_images``, uint8 [N, H, W] or [N, H, W, C], and ``train_labels``,
    ``test_labels``, integers [N] from 0.

    There are as many classes as the largest label says.

    Raises:
        UserError: the file cannot be read, or says which array is missing or wrong.
    """
    arrays = _read(path)
    train_images, test_images = (_images(path, name, arrays[name]) for name in NAMES[::2])
    train_labels, test_labels = (_labels(path, name, arrays[name]) for name in NAMES[1::2])
    classes = 1 + max((int(labels.max()) for labels in (train_labels, test_labels) if len(labels)), default=0)
    augmentation = Augmentation.of_size(train_images.shape[2:])
    return Dataset(f"npz:{path}", train_images, train_labels, test_images, test_labels, classes, augmentation)


def _read(path: Path) -> dict[str, Any]:
    numpy = needed("numpy", "--data npz:PATH", "train")
    must = f"{path} must be an npz file with {', '.join(NAMES)}"
    try:
        with path.open("rb") as opened, numpy.load(opened) as file:
            if missing := [name for name in NAMES if name not in file]:
                raise UserError(f"{must}; it is without {', '.join(missing)} and has {', '.join(file) or 'nothing'}")
            return {name: file[name] for name in NAMES}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; {must}") from None
    except (ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{must} ({error})") from None


def _images(path: Path, name: str, array: Any) -> Tensor:
    if array.dtype != "uint8" or array.ndim not in (3, 4) or 0 in array.shape:
        raise UserError(
            f"{path}: {name} must be uint8 [N, H, W] or [N, H, W, C], got {array.dtype} {list(array.shape)}"
        )
    images = torch.from_numpy(array)
    return (images.unsqueeze(1) if images.dim() == 3 else images.movedim(3, 1)).contiguous()


def _labels(path: Path, name: str, array: Any) -> Tensor:
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise UserError(f"{path}: {name} must be integers [N], got {array.dtype} {list(array.shape)}")
    return torch.from_numpy(array.astype("int64"))
