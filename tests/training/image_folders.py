"""Data sets of a user's own, on the disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

PIXELS = np.random.default_rng(0)


def write_image(path: Path, height: int = 8, width: int = 8, mode: str = "RGB") -> np.ndarray:
    """A random image; returns its pixels."""
    channels = () if mode == "L" else (len(mode),)
    pixels = PIXELS.integers(256, size=(height, width, *channels), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def write_folder(path: Path, test: str = "val", images: int = 6) -> dict[str, np.ndarray]:
    """Two classes of so many images 8 x 8 in each part; name -> pixels."""
    names = [f"{part}/{kind}/{i:02}.png" for part in ("train", test) for kind in ("cat", "dog") for i in range(images)]
    return {name: write_image(path / name) for name in names}


def npz_arrays(channels: tuple[int, ...] = (3,)) -> dict[str, np.ndarray]:
    """30 + 12 images 8 x 10 of three classes."""
    arrays: dict[str, np.ndarray] = {}
    for part, count in (("train", 30), ("test", 12)):
        arrays[f"{part}_images"] = PIXELS.integers(256, size=(count, 8, 10, *channels), dtype=np.uint8)
        arrays[f"{part}_labels"] = np.arange(count) % 3
    return arrays
