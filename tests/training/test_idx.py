import gzip
import struct
from pathlib import Path

import pytest
import torch

from weight_evolution.training.data.fashion_mnist import DEFAULT_ROOT, load_fashion_mnist
from weight_evolution.training.data.idx import read_idx
from weight_evolution.training.errors import UserError


def idx(values: torch.Tensor) -> bytes:
    header = struct.pack(f">HBB{values.dim()}I", 0, 8, values.dim(), *values.shape)
    return header + values.to(torch.uint8).numpy().tobytes()


def images(count: int) -> torch.Tensor:
    return torch.arange(count * 3 * 2).reshape(count, 3, 2) % 251


def write_fashion(root: Path, packed: bool = False, **replaced: bytes) -> Path:
    """The four files of a tiny Fashion-MNIST; keyword ``train_labels`` and the like replace one's content."""
    contents = {
        "train_images": ("train-images-idx3-ubyte", idx(images(7))),
        "train_labels": ("train-labels-idx1-ubyte", idx(torch.arange(7))),
        "test_images": ("t10k-images-idx3-ubyte", idx(images(4))),
        "test_labels": ("t10k-labels-idx1-ubyte", idx(torch.tensor([9, 0, 3, 1]))),
    }
    for key, (name, content) in contents.items():
        content = replaced.get(key, content)
        (root / (name + ".gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)
    return root


@pytest.mark.parametrize("packed", [False, True])
def test_reads_plain_and_packed_files(tmp_path, packed):
    data = load_fashion_mnist(write_fashion(tmp_path, packed))
    assert data.train_images.shape == (7, 1, 3, 2)
    assert data.test_images.dtype == torch.uint8
    torch.testing.assert_close(data.train_images[:, 0], images(7).to(torch.uint8), rtol=0, atol=0)
    assert data.test_labels.tolist() == [9, 0, 3, 1]


GOOD = idx(images(7))
PACKED = gzip.compress(GOOD, mtime=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file: 0 bytes"),
        (b"\x00\x00", "not an IDX file"),
        (b"\x00\x00\x0d\x03" + GOOD[4:], "magic number 0x00000d03, expected 0x00000803"),
        (b"\x00\x00\x08\x01" + GOOD[4:], "magic number 0x00000801"),
        (b"PK\x03\x04" + GOOD[4:], "magic number"),
        (GOOD[:9], "cut off within its header"),
        (GOOD[:-1], "is cut off: its header promises 7 x 3 x 2 = 42 bytes, it holds 41"),
        (GOOD + b"\x00", "is too long"),
        (b"\x00\x00\x08\x03" + struct.pack(">3I", 2**31, 2**31, 2**31), "is cut off"),
        (b"\x00\x00\x08\x03" + struct.pack(">3I", 0, 3, 2), "is empty"),
        (PACKED[:-12], "is damaged"),
        (b"\x1f\x8b" + GOOD, "is damaged"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} bytes",
)
def test_corrupt_files(tmp_path, content, message):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_idx(path, 3)
    assert str(path) in str(error.value)


def test_flipped_byte_in_packed_file(tmp_path):
    packed = bytearray(PACKED)
    packed[-6] ^= 0xFF  # in the checksum
    (tmp_path / "x.gz").write_bytes(packed)
    with pytest.raises(UserError, match="is damaged"):
        read_idx(tmp_path / "x.gz", 3)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"train_labels": idx(torch.tensor([0, 1, 2, 3, 4, 5, 10]))}, "label 10; labels must be 0 to 9"),
        ({"train_labels": idx(torch.arange(6))}, "7 images but .* 6 labels"),
        ({"test_images": idx(torch.zeros(4, 5, 5))}, "differ in size"),
    ],
)
def test_files_that_do_not_fit(tmp_path, replaced, message):
    with pytest.raises(UserError, match=message):
        load_fashion_mnist(write_fashion(tmp_path, **replaced))


def test_missing_files_say_how_to_get_them(tmp_path):
    with pytest.raises(UserError, match=r"apt install dataset-fashion-mnist.*--root"):
        load_fashion_mnist(tmp_path)


@pytest.mark.skipif(not DEFAULT_ROOT.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_debian_package():
    data = load_fashion_mnist()
    assert data.train_images.shape == (60000, 1, 28, 28)
    assert data.test_images.shape == (10000, 1, 28, 28)
    assert torch.bincount(data.test_labels).tolist() == [1000] * 10
