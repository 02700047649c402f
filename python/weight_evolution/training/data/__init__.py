"""The data sets by name."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError
from .cifar import load_cifar
from .dataset import Dataset, check_dataset, training_batches
from .digits import load_digits
from .fashion_mnist import load_fashion_mnist

DATA = ("digits", "fashion-mnist", "cifar10", "cifar100")

__all__ = ["DATA", "Dataset", "load_data", "training_batches"]


def load_data(name: str, root: Path | None = None, download: bool = False) -> Dataset:
    """A data set in memory. ``root`` is the folder of its files; None: each data set's usual place.

    Raises:
        UserError: the name is unknown, or the data set is missing (says how to get it) or corrupt.
    """
    if name == "digits":
        dataset = load_digits()
    elif name == "fashion-mnist":
        dataset = load_fashion_mnist(root)
    elif name in ("cifar10", "cifar100"):
        dataset = load_cifar(int(name.removeprefix("cifar")), root, download)
    else:
        raise UserError(f"--data must be one of {', '.join(DATA)}, got {name!r}")
    return check_dataset(dataset)
