"""``--data folder:PATH`` and ``npz:PATH``."""

import re
import shutil
import sys

import numpy as np
import pytest
import torch

from tests.training.image_folders import npz_arrays, write_folder, write_image
from weight_evolution.training import cli
from weight_evolution.training.data import load_data
from weight_evolution.training.data.augmentation import Augmentation
from weight_evolution.training.errors import UserError

SMALL = ["--model", "resnet8", "--batch-size", "8", "--epochs", "1", "--device", "cpu", "--quiet"]


@pytest.mark.parametrize("test", ["val", "test"])
def test_folder(tmp_path, test):
    pixels = write_folder(tmp_path, test)
    (tmp_path / "train" / ".hidden").mkdir()
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    data = load_data(f"folder:{tmp_path}")
    assert (data.num_classes, data.in_channels) == (2, 3)
    assert data.train_labels.tolist() == [0] * 6 + [1] * 6
    for i, name in enumerate(sorted(name for name in pixels if name.startswith("train"))):
        assert np.array_equal(data.train_images[i].movedim(0, 2), pixels[name])
    for i, name in enumerate(sorted(name for name in pixels if name.startswith(test))):
        assert np.array_equal(data.test_images[i].movedim(0, 2), pixels[name])
    assert data.augmentation == Augmentation(padding=1, flip=True)


def test_val_goes_before_test(tmp_path):
    pixels = write_folder(tmp_path, "val") | write_folder(tmp_path, "test")
    data = load_data(f"folder:{tmp_path}")
    assert np.array_equal(data.test_images[0].movedim(0, 2), pixels["val/cat/00.png"])


def test_other_modes_suffixes_and_folders_in_a_class(tmp_path):
    write_folder(tmp_path)
    grey = write_image(tmp_path / "train" / "cat" / "deeper" / "a.BMP", mode="L")
    write_image(tmp_path / "train" / "dog" / "z.png", mode="RGBA")
    data = load_data(f"folder:{tmp_path}")
    assert data.train_labels.tolist() == [0] * 7 + [1] * 7
    assert np.array_equal(data.train_images[6], np.stack([grey] * 3))


def test_sizes(tmp_path):
    write_folder(tmp_path)
    write_image(tmp_path / "train" / "dog" / "a.png", 12, 10)
    with pytest.raises(UserError, match=r"differ in size: .*a\.png is 12 x 10 .*, others are 8 x 8; pass --image-size"):
        load_data(f"folder:{tmp_path}")
    data = load_data(f"folder:{tmp_path}", image_size=6)
    assert data.train_images.shape == (13, 3, 6, 6)
    assert data.test_images.shape == (12, 3, 6, 6)
    (tmp_path / "train" / "dog" / "a.png").unlink()
    write_image(tmp_path / "val" / "dog" / "a.png", 12, 10)
    with pytest.raises(UserError, match=r"val.dog.a\.png is 12 x 10 .*, others are 8 x 8"):
        load_data(f"folder:{tmp_path}")


def test_an_image_is_cut_in_its_middle_and_not_distorted(tmp_path):
    write_folder(tmp_path)
    wide = write_image(tmp_path / "train" / "cat" / "00.png", 8, 12)
    data = load_data(f"folder:{tmp_path}", image_size=8)
    assert np.array_equal(data.train_images[0].movedim(0, 2), wide[:, 2:10])


def no_train(path):
    shutil.rmtree(path / "train")


def nothing(path):
    shutil.rmtree(path)
    path.mkdir()


def images_only(path):
    nothing(path)
    write_image(path / "a.png")


def files_only(path):
    nothing(path)
    (path / "labels.csv").write_text("a")


def no_test(path):
    shutil.rmtree(path / "val")


def no_split(path):
    no_test(path)
    for folder in (path / "train").iterdir():
        folder.rename(path / folder.name)
    (path / "train").rmdir()


def loose(path):
    for file in list((path / "train").rglob("*.png")):
        file.rename(path / "train" / f"{file.parent.name}-{file.name}")
    for folder in ("cat", "dog"):
        (path / "train" / folder).rmdir()


def empty(path):
    for file in (path / "train" / "dog").iterdir():
        file.unlink()


def one_class(path):
    shutil.rmtree(path / "train" / "dog")
    shutil.rmtree(path / "val" / "dog")


def unknown_class(path):
    write_image(path / "val" / "eel" / "a.png")


def damaged(path):
    file = path / "val" / "dog" / "01.png"
    file.write_bytes(file.read_bytes()[:60])


@pytest.mark.parametrize(
    ("breaks", "given", "message"),
    [
        (None, "set/other", "there is no such folder"),
        (None, "set/train/cat/00.png", "not a folder"),
        (None, ".", "one level too high; pass folder:{path}/set"),
        (None, "set/train", "too low a level; pass the folder that holds train: folder:{path}/set"),
        (None, "set/val", "too low a level; pass the folder that holds train: folder:{path}/set"),
        (None, "set/train/dog", "too low a level; pass the folder that holds train: folder:{path}/set"),
        (no_train, "set", "there is no train in it but val; the layout is"),
        (nothing, "set", "there is no train in it and no other folder; it is empty; the layout is"),
        (images_only, "set", "no other folder; it holds images; the layout is"),
        (files_only, "set", "no other folder; it holds files, but no images; the layout is"),
        (no_split, "set", "there is no split in train and val"),
        (no_test, "set", "there must be val or test"),
        (loose, "set", "train must have a folder for each class; the images lie in it without"),
        (empty, "set", "train/dog of a class has no image"),
        (one_class, "set", "has one class only, cat"),
        (unknown_class, "set", "val has a class eel that {path}/set/train has not"),
        (damaged, "set", "cannot read the image {path}/set/val/dog/01.png"),
    ],
)
def test_what_is_wrong_with_a_folder(tmp_path, breaks, given, message):
    write_folder(tmp_path / "set")
    if breaks:
        breaks(tmp_path / "set")
    with pytest.raises(UserError, match=re.escape(message.format(path=tmp_path))):
        load_data(f"folder:{tmp_path / given}")


def test_missing_pillow_says_how_to_get_it(tmp_path, monkeypatch):
    write_folder(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(UserError, match=r"--data folder:PATH needs PIL: pip install '\.\[train\]'"):
        load_data(f"folder:{tmp_path}")


@pytest.mark.parametrize("channels", [(), (1,), (3,), (4,)])
def test_npz(tmp_path, channels):
    arrays = npz_arrays(channels)
    np.savez(tmp_path / "a.npz", **arrays)
    data = load_data(f"npz:{tmp_path / 'a.npz'}")
    assert data.train_images.shape == (30, channels[0] if channels else 1, 8, 10)
    assert np.array_equal(data.test_images.movedim(1, 3).reshape(arrays["test_images"].shape), arrays["test_images"])
    assert data.test_labels.tolist() == arrays["test_labels"].tolist()
    assert data.num_classes == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_images": None}, "without test_images and has train_images, train_labels, test_labels"),
        ({"test_images": np.zeros((2, 8, 8), np.float32)}, r"test_images must be uint8 .*, got float32 \[2, 8, 8\]"),
        ({"train_images": np.zeros((2, 8), np.uint8)}, r"train_images must be uint8 .*, got uint8 \[2, 8\]"),
        ({"train_images": np.zeros((0, 8, 8), np.uint8)}, r"train_images must be uint8"),
        ({"train_labels": np.zeros(30)}, r"train_labels must be integers \[N\], got float64 \[30\]"),
        ({"train_labels": np.zeros((30, 1), int)}, r"train_labels must be integers \[N\], got int64 \[30, 1\]"),
        ({"train_labels": np.zeros(0, int), "test_labels": np.zeros(0, int)}, "30 training images but 0 labels"),
        ({"train_labels": np.zeros(29, int)}, "30 training images but 29 labels"),
        ({"train_labels": np.arange(30) - 1}, "training labels must be 0 to 28, got -1 to 28"),
        ({"test_labels": np.arange(12) % 3 - 1}, "test labels must be 0 to 2, got -1 to 1"),
        ({"test_labels": np.arange(12) % 3 + 1}, "test labels must be 0 to 2, got 1 to 3"),
        ({"train_labels": np.arange(30) % 3 + 1}, r"train_labels must be all of 0 to .*, got 1 to 3 without 0; number"),
        ({"train_labels": np.arange(30) % 3 * 2}, r"train_labels must be all of 0 to .*, got 0 to 4 without 1"),
        ({"train_labels": np.arange(30) * 0, "test_labels": np.arange(12) * 0}, "all training images have the label 0"),
        (
            {"train_images": np.zeros((30, 3, 8, 8), np.uint8)},
            r"\[N, C, H, W\]; save train_images.transpose\(0, 2, 3, 1",
        ),
        ({"test_images": np.zeros((12, 1, 8, 8), np.uint8)}, r"\[N, C, H, W\]; save test_images.transpose"),
        ({"train_images": np.zeros((30, 8, 8, 5), np.uint8)}, r"got \[30, 8, 8, 5\]; C must be 1, 3 or 4"),
        ({"test_images": np.zeros((12, 8, 8), np.uint8)}, "test images must be uint8 of one shape"),
        ({"test_labels": np.array([{}] * 12)}, r"a\.npz: test_labels must be an array of integers \(Object arrays"),
    ],
)
def test_what_is_wrong_with_an_npz_file(tmp_path, change, message):
    arrays = {name: array for name, array in (npz_arrays() | change).items() if array is not None}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=message):
        load_data(f"npz:{tmp_path / 'a.npz'}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read .*: No such file"),
        (b"", "it is empty"),
        (b"no archive", "it is a text"),
        (b"PK\x03\x04 cut off", "it is cut off after 12 bytes"),
        (np.zeros(3), "it is a NumPy array"),
        (b"\xff\x00\x01", "it is no zip archive"),
    ],
)
def test_what_is_no_npz_file(tmp_path, content, message):
    path = tmp_path / "a.npz"
    if isinstance(content, np.ndarray):
        with path.open("wb") as file:
            np.save(file, content)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.npz.*{message}|{message}.*a\.npz"):
        load_data(f"npz:{path}")


@pytest.mark.parametrize("name", ["folder", "folder:", "npz:", "zip:a"])
def test_what_is_no_data(name):
    with pytest.raises(UserError, match=r"--data must be digits, .*folder:PATH"):
        load_data(name)


def test_options_of_other_data_are_refused(tmp_path):
    with pytest.raises(UserError, match="--image-size does not go with --data digits"):
        load_data("digits", image_size=4)
    with pytest.raises(UserError, match="--root does not go with --data npz:a"):
        load_data("npz:a", tmp_path)
    with pytest.raises(UserError, match="--root does not go with --data digits"):
        load_data("digits", tmp_path)
    with pytest.raises(UserError, match="--download does not go with --data npz:a"):
        load_data("npz:a", download=True)
    with pytest.raises(UserError, match="--no-checksum does not go with --data digits"):
        load_data("digits", checksum=False)


def test_training_and_a_compact_network_of_it(tmp_path, capsys):
    write_folder(tmp_path / "set")
    write_image(tmp_path / "set" / "train" / "cat" / "00.png", 9, 11)
    train = ["train", "--data", f"folder:{tmp_path / 'set'}", *SMALL, "--method", "low-rank"]
    assert cli.main([*train, "--output", str(tmp_path / "run")]) == 2
    assert "pass --image-size N" in capsys.readouterr().err
    assert cli.main([*train, "--output", str(tmp_path / "run"), "--image-size", "8"]) == 0
    checkpoint = tmp_path / "run" / "seed-0" / "checkpoint.pt"
    assert torch.load(checkpoint, weights_only=True)["config"]["image_size"] == 8
    capsys.readouterr()
    assert cli.main(["compact", str(checkpoint), "-o", str(tmp_path / "compact.pt"), "--device", "cpu"]) == 0
    assert "(12 images)" in capsys.readouterr().out
