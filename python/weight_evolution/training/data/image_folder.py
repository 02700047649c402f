"""A data set of one's own as a folder of images: ``train/CLASS/*.png`` and ``val/CLASS/*.png`` (or ``test``)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weight_evolution.tables import first_line

from ..errors import UserError, needed
from .augmentation import Augmentation
from .dataset import Dataset

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp")
TEST_PARTS = ("val", "test")
"""Folders of the test images; the first that is there."""
_PARTS = ("train", *TEST_PARTS)


def load_image_folder(path: Path, image_size: int | None = None) -> Dataset:
    """All images in memory, as RGB, 3 bytes a pixel. The classes are the folders in ``train``, in alphabetical order.

    Args:
        path: holds ``train`` and ``val`` (or ``test``), each with a folder per class, as of torchvision's ImageFolder.
        image_size: cut each image to a square in its middle and resize that to so many pixels a side, with
            antialiasing; None: all images are of one size.

    Raises:
        UserError: a folder is missing or at another level, an image cannot be read, or two differ in size; Pillow is
            not installed.
    """
    train, test = _parts(path)
    classes = [folder.name for folder in _folders(train)]
    if unknown := [folder.name for folder in _folders(test) if folder.name not in classes]:
        raise UserError(f"{test} has a class {unknown[0]} that {train} has not")
    parts: list[tuple[Tensor, Tensor]] = []
    for part in (train, test):
        files = {name: _images(part / name) for name in classes if (part / name).is_dir()}
        images = _decode(
            [file for of in files.values() for file in of], image_size, like=parts[0][0] if parts else None
        )
        labels = [label for label, name in enumerate(classes) for _ in files.get(name, ())]
        parts.append((images, torch.tensor(labels)))
    augmentation = Augmentation.of_size(parts[0][0].shape[2:])
    return Dataset(f"folder:{path}", *parts[0], *parts[1], len(classes), augmentation)


def _parts(path: Path) -> tuple[Path, Path]:
    """The folders of the training and of the test images; the error says which of the ways to miss them this is."""
    if not path.is_dir():
        raise UserError(f"--data folder:{path}: {'not a folder' if path.exists() else 'there is no such folder'}")
    test = next((path / name for name in TEST_PARTS if (path / name).is_dir()), None)
    train = path / "train"
    if not train.is_dir():
        raise UserError(f"--data folder:{path}: {_where(path.absolute())}")
    if test is None:
        raise UserError(f"--data folder:{path}: beside train there must be val or test, with a folder for each class")
    for part in (train, test):
        if not _folders(part):
            loose = "; the images lie in it without" if _has_images(part) else ""
            raise UserError(f"--data folder:{path}: {part} must have a folder for each class{loose}")
    if len(_folders(train)) < 2:
        raise UserError(f"--data folder:{path}: {train} has one class only, {_folders(train)[0].name}")
    return train, test


def _where(path: Path) -> str:
    """What is wrong with a folder that has no ``train``."""
    for above in (path.parent, path.parent.parent):
        if (above / "train").is_dir() and any(part in _PARTS for part in path.relative_to(above).parts[:1]):
            return f"too low a level; pass the folder that holds train: folder:{above}"
    if below := next((folder for folder in _folders(path) if (folder / "train").is_dir()), None):
        return f"one level too high; pass folder:{below}"
    inside = [folder.name for folder in _folders(path)]
    layout = "PATH/train/CLASS/*.png and PATH/val/CLASS/*.png (or test)"
    if any(_has_images(path / name) for name in inside):
        return f"its folders hold images, but there is no split in train and val; the layout is {layout}"
    holds = f"but {', '.join(inside[:5])}" if inside else f"and no other folder; it {_content(path)}"
    return f"there is no train in it {holds}; the layout is {layout}"


def _content(path: Path) -> str:
    if _has_images(path):
        return "holds images"
    return "holds files, but no images" if any(path.iterdir()) else "is empty"


def _folders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _has_images(path: Path) -> bool:
    return any(entry.suffix.lower() in SUFFIXES for entry in path.iterdir())


def _images(folder: Path) -> list[Path]:
    """The images of a class, those of folders in it, too."""
    found = [Path(at) / name for at, _, names in os.walk(folder, followlinks=True) for name in names]
    images = sorted(file for file in found if file.suffix.lower() in SUFFIXES and not file.name.startswith("."))
    if not images:
        raise UserError(f"the folder {folder} of a class has no image ({' '.join(f'*{s}' for s in SUFFIXES)})")
    return images


def _decode(files: Sequence[Path], image_size: int | None, like: Tensor | None) -> Tensor:
    """uint8 [N, 3, H, W], of the size of the images ``like``."""
    size = None if like is None else like.shape[2:]
    read = partial(_read, needed("PIL.Image", "--data folder:PATH", "train"), image_size)
    images: Tensor | None = None
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for i, image in enumerate(threads.map(read, files)):
            size = size or image.shape[1:]
            if image.shape[1:] != size:
                one, other = (f"{height} x {width}" for height, width in (size, image.shape[1:]))
                raise UserError(
                    f"the images differ in size: {files[i]} is {other} (height x width), others are {one}; pass "
                    "--image-size N to resize all"
                )
            if images is None:
                images = _empty(len(files), image.shape)
            images[i] = image
    assert images is not None
    return images


def _empty(count: int, shape: torch.Size) -> Tensor:
    try:
        return torch.empty(count, *shape, dtype=torch.uint8)
    except RuntimeError:
        size = f"{count * shape.numel() / 2**30:.1f} GiB"
        raise UserError(
            f"{count} images take {size} in memory, where all must be; pass a smaller --image-size"
        ) from None


def _read(pillow: Any, image_size: int | None, file: Path) -> Tensor:
    """uint8 [3, H, W]."""
    try:
        with pillow.open(file) as opened:
            image = opened.convert("RGB")
    except Exception as error:  # of other bytes the decoders raise nearly anything
        raise UserError(f"cannot read the image {file} ({first_line(error)})") from None
    if image_size is not None and image.size != (image_size, image_size):
        side = min(image.size)
        left, top = ((length - side) // 2 for length in image.size)
        box = (left, top, left + side, top + side)
        image = image.resize((image_size, image_size), pillow.Resampling.BILINEAR, box=box)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.reshape(image.height, image.width, 3).movedim(2, 0)
