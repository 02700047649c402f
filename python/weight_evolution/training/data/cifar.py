"""CIFAR-10 and CIFAR-100 in the "python version" of https://www.cs.toronto.edu/~kriz/cifar.html: 50,000 + 10,000 colour
images 32 x 32.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from weight_evolution.tables import first_line

from ..errors import UserError, needed
from .augmentation import Augmentation
from .dataset import Dataset

DEFAULT_ROOT = Path("data")


class _Layout(NamedTuple):
    """Of the files, as published; file -> MD5."""

    folder: str
    archive: str
    train: dict[str, str]
    test: dict[str, str]
    labels: str


_LAYOUTS = {
    10: _Layout(
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
        {
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        {"test_batch": "40351d587109b95175f43aff81a1287e"},
        "labels",
    ),
    100: _Layout(
        "cifar-100-python",
        "cifar-100-python.tar.gz",
        {"train": "16019d7e3df5f24257cddd939b257f8d"},
        {"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        "fine_labels",
    ),
}


def load_cifar(classes: int, root: Path | None = None, download: bool = False, checksum: bool = True) -> Dataset:
    """The data set from its pickled files; of these nothing but arrays, lists, numbers and strings is loaded.

    Args:
        classes: 10 or 100.
        root: the folder that holds ``cifar-10-batches-py`` or ``cifar-100-python``; ``data`` when left out.
        download: let torchvision fetch what is not there.
        checksum: insist on the published files; False for one's own in the same format.

    Raises:
        UserError: a file is missing (says where it was looked for, and how to get it), damaged or not the published
            one; torchvision, to download, is not installed.
    """
    layout = _LAYOUTS[classes]
    root = DEFAULT_ROOT if root is None else root
    if download:
        _download(classes, root)
    folder = _find(root, layout, classes)
    parts: list[Tensor] = []
    for files in (layout.train, layout.test):
        read = [_read(folder / name, digest if checksum else None, layout.labels) for name, digest in files.items()]
        parts += [torch.cat([images for images, _ in read]), torch.cat([labels for _, labels in read])]
    train_images, train_labels, test_images, test_labels = parts
    augmentation = Augmentation(padding=4, flip=True)
    return Dataset(f"cifar{classes}", train_images, train_labels, test_images, test_labels, classes, augmentation)


def _download(classes: int, root: Path) -> None:
    datasets = needed("torchvision", "--download", "vision").datasets
    reader = {10: datasets.CIFAR10, 100: datasets.CIFAR100}[classes]
    try:
        reader(str(root), train=True, download=True)
    except (RuntimeError, OSError) as error:
        raise UserError(f"cannot download CIFAR-{classes} to {root} ({first_line(error)})") from None


def _find(root: Path, layout: _Layout, classes: int) -> Path:
    """The folder of the files; the error says which of the ways to miss it this is."""
    if (root / layout.folder).is_dir():
        return root / layout.folder
    name = f"CIFAR-{classes}"
    if not root.is_dir():
        raise UserError(f"{name}: there is no folder {root}; pass --root FOLDER, or --download to fetch it there")
    if any((root / file).is_file() for file in (*layout.train, *layout.test)):
        raise UserError(f"{name}: --root {root} is one level too low; pass the folder above, --root {root.parent}")
    if below := next((path.parent for path in sorted(root.glob(f"*/{layout.folder}"))), None):
        raise UserError(f"{name}: --root {root} is one level too high; pass --root {below}")
    if (root / layout.archive).is_file():
        raise UserError(f"{name}: {root / layout.archive} is not unpacked; run tar -xzf in {root}")
    raise UserError(f"{name}: no {layout.folder} in {root}; pass --root FOLDER, or --download to fetch it there")


def _read(path: Path, digest: str | None, labels: str) -> tuple[Tensor, Tensor]:
    """Images uint8 [N, 3, 32, 32] and labels int64 [N]."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    if digest is not None and (found := hashlib.md5(content, usedforsecurity=False).hexdigest()) != digest:
        raise UserError(
            f"{path} is not the published file: its MD5 is {found}, not {digest}; get it again, or pass --no-checksum "
            "if it is meant to differ"
        )
    batch = _unpickle(path, content)
    images: Any = batch.get("data")
    if getattr(images, "dtype", None) != "uint8" or images.ndim != 2 or images.shape[1] != 3 * 32 * 32:
        raise UserError(f"{path} is no part of CIFAR: 'data' must be uint8 [N, 3072]")
    of = batch.get(labels)
    if not isinstance(of, list) or not all(isinstance(label, int) for label in of):
        raise UserError(f"{path} is no part of CIFAR: {labels!r} must be a list of integers")
    return torch.from_numpy(images.copy()).reshape(-1, 3, 32, 32), torch.tensor(of, dtype=torch.int64)


def _unpickle(path: Path, content: bytes) -> dict[str, Any]:
    numpy = needed("numpy", "CIFAR", "train")
    allowed = {"_reconstruct": numpy.zeros(0).__reduce__()[0], "ndarray": numpy.ndarray, "dtype": numpy.dtype}

    class Unpickler(pickle.Unpickler):
        """Of arrays alone: a pickle may otherwise run any code."""

        def find_class(self, module: str, name: str) -> Any:
            if (module, name) == ("_codecs", "encode"):
                return super().find_class(module, name)
            if module.partition(".")[0] != "numpy" or name not in allowed:
                raise pickle.UnpicklingError(f"it holds a {module}.{name}")
            return allowed[name]

    try:
        batch = Unpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # of other bytes the unpickler raises nearly anything
        raise UserError(f"{path} is damaged or no part of CIFAR ({first_line(error)})") from None
    if not isinstance(batch, dict):
        raise UserError(f"{path} is no part of CIFAR: it holds a {type(batch).__name__}")
    return batch
