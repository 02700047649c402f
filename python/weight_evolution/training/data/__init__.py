"""The data sets by name, and those of users."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError
from .cifar import load_cifar
from .dataset import Dataset, batch_sizes, check_dataset, training_batches
from .digits import load_digits
from .fashion_mnist import load_fashion_mnist
from .image_folder import load_image_folder
from .npz import load_npz

DATA_HELP = (
    "digits, fashion-mnist, cifar10, cifar100, folder:PATH (PATH/train/CLASS/*.png, PATH/val/CLASS/*.png), or "
    "npz:PATH (train_images, train_labels, test_images, test_labels)"
)
DOWNLOAD_HELP = "let torchvision fetch CIFAR into --root"
CHECKSUM_HELP = "read CIFAR's files even if they are not the published ones"
IMAGE_SIZE_HELP = "of folder:PATH: cut and resize all images to N x N pixels"

__all__ = [
    "CHECKSUM_HELP",
    "DATA_HELP",
    "DOWNLOAD_HELP",
    "IMAGE_SIZE_HELP",
    "Dataset",
    "batch_sizes",
    "is_folder",
    "load_data",
    "training_batches",
]


def is_folder(name: str) -> bool:
    """Whether a data set is a folder of images, which may be resized."""
    return name.startswith("folder:")


def load_data(
    name: str,
    root: Path | None = None,
    download: bool = False,
    checksum: bool = True,
    image_size: int | None = None,
) -> Dataset:
    """A data set in memory.

    Args:
        name: as `DATA_HELP` says.
        root: the folder of its files; None: each data set's usual place.
        download: of CIFAR, what is missing.
        checksum: of CIFAR, insist on the published files.
        image_size: as for `load_image_folder`.

    Raises:
        UserError: the name is unknown, an option belongs to another data set, or the data set is missing (says how to
            get it) or corrupt.
    """
    kind, separator, path = name.partition(":")
    cifar = name in ("cifar10", "cifar100")
    _refuse_unused(name, {"--root": root is not None and (bool(separator) or name == "digits")})
    _refuse_unused(name, {"--download": download and not cifar, "--no-checksum": not checksum and not cifar})
    _refuse_unused(name, {"--image-size": image_size is not None and not is_folder(name)})
    if name == "digits":
        dataset = load_digits()
    elif name == "fashion-mnist":
        dataset = load_fashion_mnist(root)
    elif cifar:
        dataset = load_cifar(int(name.removeprefix("cifar")), root, download, checksum)
    elif kind == "folder" and path:
        dataset = load_image_folder(Path(path).expanduser(), image_size)
    elif kind == "npz" and path:
        dataset = load_npz(Path(path).expanduser())
    else:
        raise UserError(f"--data must be {DATA_HELP}; got {name!r}")
    return check_dataset(dataset)


def _refuse_unused(name: str, options: dict[str, bool]) -> None:
    for option, given in options.items():
        if given:
            raise UserError(f"{option} does not go with --data {name}; leave it out")
