"""A data set of one's own as a file of ``numpy.savez``."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError, needed
from ..torch_files import kind_of
from .augmentation import Augmentation
from .dataset import Dataset

NAMES = ("train_images", "train_labels", "test_images", "test_labels")
CHANNELS = (1, 3, 4)
"""Grey, colour, colour with a fourth channel: what tells [N, H, W, C] from [N, C, H, W]."""


def load_npz(path: Path) -> Dataset:
    """The arrays ``train_images``, ``test_images``, uint8 [N, H, W] or [N, H, W, C] with C of 1, 3 or 4, and
    ``train_labels``, ``test_labels``, integers [N].

    There are as many classes as the largest label of the training images says; they have each label from 0 to it.

    Raises:
        UserError: the file cannot be read, or says which array is missing or wrong.
    """
    arrays = _read(path)
    train_images, test_images = (_images(path, name, arrays[name]) for name in NAMES[::2])
    train_labels, test_labels = (_labels(path, name, arrays[name]) for name in NAMES[1::2])
    classes = _classes(path, train_labels)
    augmentation = Augmentation.of_size(train_images.shape[2:])
    return Dataset(f"npz:{path}", train_images, train_labels, test_images, test_labels, classes, augmentation)


def _read(path: Path) -> dict[str, Any]:
    numpy = needed("numpy", "--data npz:PATH", "train")
    must = f"{path} must be an npz file with {', '.join(NAMES)}"
    try:
        if path.is_file() and not zipfile.is_zipfile(path):  # which NumPy would take for an array or a pickle
            raise UserError(f"{must}; {kind_of(path) or 'it is no zip archive'}")
        with path.open("rb") as opened, numpy.load(opened) as file:
            if missing := [name for name in NAMES if name not in file]:
                raise UserError(f"{must}; it is without {', '.join(missing)} and has {', '.join(file) or 'nothing'}")
            return {name: _array(path, name, file) for name in NAMES}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; {must}") from None
    except (ValueError, EOFError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{must} ({error})") from None


def _array(path: Path, name: str, file: Any) -> Any:
    try:
        return file[name]
    except ValueError as error:  # of objects
        raise UserError(f"{path}: {name} must be an array of integers ({error})") from None


def _images(path: Path, name: str, array: Any) -> Tensor:
    if array.dtype != "uint8" or array.ndim not in (3, 4) or 0 in array.shape:
        raise UserError(
            f"{path}: {name} must be uint8 [N, H, W] or [N, H, W, C], got {array.dtype} {list(array.shape)}"
        )
    if array.ndim == 4 and array.shape[3] not in CHANNELS:
        first = array.shape[1] in CHANNELS
        what = f"these look like [N, C, H, W]; save {name}.transpose(0, 2, 3, 1)" if first else "C must be 1, 3 or 4"
        raise UserError(f"{path}: {name} must be uint8 [N, H, W] or [N, H, W, C], got {list(array.shape)}; {what}")
    images = torch.from_numpy(array)
    return (images.unsqueeze(1) if images.dim() == 3 else images.movedim(3, 1)).contiguous()


def _labels(path: Path, name: str, array: Any) -> Tensor:
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise UserError(f"{path}: {name} must be integers [N], got {array.dtype} {list(array.shape)}")
    return torch.from_numpy(array.astype("int64"))


def _classes(path: Path, labels: Tensor) -> int:
    """How many; `check_dataset` refuses negative labels and none."""
    found = set(labels.tolist())
    classes = 1 + max(found, default=0)
    missing = next((label for label in range(classes) if label not in found), None)
    if found and min(found) >= 0 and missing is not None:
        raise UserError(
            f"{path}: train_labels must be all of 0 to the number of classes less 1, got {min(found)} to {max(found)} "
            f"without {missing}; number the classes from 0 without gaps, in train_labels and test_labels alike"
        )
    return classes
