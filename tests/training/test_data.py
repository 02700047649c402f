import hashlib
import pickle
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.pretend_gpu import pretend_gpu
from weight_evolution.training.data import Dataset, cifar, load_data, training_batches
from weight_evolution.training.data.augmentation import Augmentation
from weight_evolution.training.data.dataset import check_dataset
from weight_evolution.training.errors import UserError
from weight_evolution.training.randomness import generator


def test_digits_split_is_fixed_and_disjoint():
    first, second = load_data("digits"), load_data("digits")
    assert (len(first.train_images), len(first.test_images)) == (898, 899)
    assert torch.equal(first.test_images, second.test_images)
    # Of the 1,797 images a few are equal; a leak would make hundreds of pairs.
    train = {image.numpy().tobytes() for image in first.train_images}
    assert sum(image.numpy().tobytes() in train for image in first.test_images) < 5
    # The split must not drift: published numbers rest on it.
    assert first.test_labels[:12].tolist() == [4, 6, 3, 9, 9, 5, 1, 7, 6, 2, 5, 5]
    assert int(torch.bincount(first.test_labels).min()) > 70


def test_statistics_are_those_of_the_training_images(digits):
    mean, deviation = digits.statistics
    values = digits.train_images.double()
    torch.testing.assert_close(mean.item(), values.mean().item(), rtol=1e-5, atol=0)
    torch.testing.assert_close(deviation.item(), values.std(correction=0).item(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("labels", [[0] * 5 + [1] * 5 + [2] * 10, [0, 1, 2, 2] * 5], ids=["sorted", "in turns"])
def test_a_sample_of_the_test_images_has_all_classes(labels):
    labels = torch.tensor(labels)
    images = labels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    data = Dataset("a", images, labels, images, labels, 3, Augmentation())
    assert data.test_sample(4).flatten(1)[:, 0].tolist() == [0, 1, 2, 2]
    assert data.test_sample(3).flatten(1)[:, 0].unique().tolist() == [0, 1, 2]
    assert torch.equal(data.test_sample(8), data.test_sample(8))
    assert torch.equal(data.test_sample(20), images)
    assert torch.equal(data.test_sample(99), images)


@pytest.mark.parametrize(("batch_size", "sizes"), [(32, [32, 32, 26]), (89, [90]), (500, [90]), (44, [44, 44, 2])])
def test_batches_hold_each_image_once(digits, batch_size, sizes):
    batches = list(training_batches(digits, batch_size, seed=3, epoch=5, augment=False))
    assert [len(labels) for _, labels in batches] == sizes
    seen = sorted(image.numpy().tobytes() for images, _ in batches for image in images)
    assert seen == sorted(image.numpy().tobytes() for image in digits.train_images)


def test_batches_depend_on_seed_and_epoch_alone(digits):
    def first(seed, epoch):
        torch.rand(3)  # the global generator must not matter
        return next(iter(training_batches(digits, 32, seed, epoch, augment=True)))[0]

    assert torch.equal(first(1, 2), first(1, 2))
    assert not torch.equal(first(1, 2), first(1, 3))
    assert not torch.equal(first(1, 2), first(2, 2))


def test_augmentation_gives_crops_of_the_padded_image_and_flips():
    images = torch.arange(2 * 3 * 5 * 4, dtype=torch.uint8).reshape(2, 3, 5, 4)
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    crops = [padded[:, :, y : y + 5, x : x + 4] for y in range(3) for x in range(3)]
    candidates = [view for crop in crops for view in (crop, crop.flip(3))]
    found = set()
    draws = generator("test")
    for _ in range(200):
        result = Augmentation(padding=1, flip=True)(images, draws)
        which = [i for i, candidate in enumerate(candidates) if torch.equal(candidate[1], result[1])]
        assert len(which) == 1
        found.update(which)
    assert found == set(range(18))


def test_no_augmentation_changes_nothing():
    images = torch.randint(256, (3, 2, 5, 4), dtype=torch.uint8)
    assert torch.equal(Augmentation()(images, generator("test")), images)


def test_what_is_tested_must_be_trained(digits):
    few = replace(digits, train_labels=digits.train_labels.clamp(max=8), test_labels=digits.test_labels * 0 + 9)
    with pytest.raises(UserError, match="digits: the test images have the label 9, which no training image has"):
        check_dataset(few)


def test_unknown_data():
    with pytest.raises(UserError, match=r"--data must be digits.*'mnist'"):
        load_data("mnist")


def test_missing_scikit_learn_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"pip install '\.\[train\]'"):
        load_data("digits")


def write_cifar(root, classes=10, images=3):
    """Files of CIFAR's format with few images each; returns the pixels of the test images [N, 3, 32, 32]."""
    layout = cifar._LAYOUTS[classes]
    (root / layout.folder).mkdir(parents=True)
    draws = np.random.default_rng(0)
    pixels = None
    for name in (*layout.train, *layout.test):
        pixels = draws.integers(256, size=(images, 3072), dtype=np.uint8)
        batch = {"data": pixels, layout.labels: list(range(images)), "batch_label": "a part"}
        content = pickle.dumps(batch, protocol=2)  # with the name that NumPy's module had then
        (root / layout.folder / name).write_bytes(content.replace(b"numpy._core.", b"numpy.core."))
    return pixels.reshape(-1, 3, 32, 32)


@pytest.fixture
def published(monkeypatch):
    """What `write_cifar` writes is what is published."""

    def publish(root, classes=10):
        layout = cifar._LAYOUTS[classes]
        digests = {
            name: hashlib.md5((root / layout.folder / name).read_bytes()).hexdigest()
            for name in (*layout.train, *layout.test)
        }
        train, test = ({name: digests[name] for name in part} for part in (layout.train, layout.test))
        monkeypatch.setitem(cifar._LAYOUTS, classes, layout._replace(train=train, test=test))

    return publish


@pytest.mark.parametrize("classes", [10, 100])
def test_cifar(tmp_path, published, classes):
    pixels = write_cifar(tmp_path, classes)
    published(tmp_path, classes)
    data = load_data(f"cifar{classes}", tmp_path)
    assert data.num_classes == classes
    assert data.train_images.shape == (15 if classes == 10 else 3, 3, 32, 32)
    assert np.array_equal(data.test_images, pixels)
    assert data.test_labels.tolist() == [0, 1, 2]
    assert data.augmentation == Augmentation(padding=4, flip=True)


def test_the_checksum_of_cifar(tmp_path):
    pixels = write_cifar(tmp_path)
    with pytest.raises(UserError, match=r"data_batch_1 is not the published file: .*MD5 .* pass --no-checksum"):
        load_data("cifar10", tmp_path)
    assert np.array_equal(load_data("cifar10", tmp_path, checksum=False).test_images, pixels)


def test_where_cifar_is_not(tmp_path):
    root = tmp_path / "a"
    write_cifar(root)
    for given, message in (
        (tmp_path / "b", "there is no folder .*b; pass --root FOLDER, or --download to fetch it there"),
        (root / "cifar-10-batches-py", f"one level too low; pass the folder above, --root {root}$"),
        (tmp_path, f"one level too high; pass --root {root}$"),
    ):
        with pytest.raises(UserError, match=message):
            load_data("cifar10", given)
    with pytest.raises(UserError, match=r"CIFAR-100: no cifar-100-python in .*a; pass --root"):
        load_data("cifar100", root)
    (root / "cifar-100-python.tar.gz").touch()
    with pytest.raises(UserError, match=r"cifar-100-python.tar.gz is not unpacked; run tar -xzf"):
        load_data("cifar100", root)
    (root / "cifar-10-batches-py" / "test_batch").unlink()
    with pytest.raises(UserError, match=r"cannot read .*test_batch: No such file"):
        load_data("cifar10", root, checksum=False)


class Evil:
    """Runs something when it is unpickled."""

    def __reduce__(self):
        return print, ("unpickled",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged or no part of CIFAR"),
        (pickle.dumps(Evil()), "it holds a builtins.print"),
        (pickle.dumps([1]), "it holds a list"),
        (pickle.dumps({"data": np.zeros((2, 3)), "labels": [0, 1]}), r"'data' must be uint8 \[N, 3072\]"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": "ab"}), "'labels' must be a list of integers"),
    ],
)
def test_a_file_that_is_no_part_of_cifar(tmp_path, capsys, content, message):
    write_cifar(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_data("cifar10", tmp_path, checksum=False)
    assert capsys.readouterr().out == ""


def fake_torchvision(monkeypatch, download):
    module = types.ModuleType("torchvision")
    module.datasets = types.SimpleNamespace(CIFAR10=download, CIFAR100=download)
    monkeypatch.setitem(sys.modules, "torchvision", module)


def test_cifar_is_downloaded_by_torchvision(tmp_path, monkeypatch):
    fake_torchvision(monkeypatch, lambda root, train, download: write_cifar(Path(root)))
    data = load_data("cifar10", tmp_path, True, checksum=False)
    assert len(data.train_images) == 15


def test_a_download_that_fails(tmp_path, monkeypatch):
    def fail(root, train, download):
        raise RuntimeError("File not found or corrupted.\nmore")

    fake_torchvision(monkeypatch, fail)
    with pytest.raises(UserError, match=r"cannot download CIFAR-100 to .* \(File not found or corrupted\.\)$"):
        load_data("cifar100", tmp_path, True)


def test_missing_torchvision_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(UserError, match=r"--download needs torchvision: pip install '\.\[vision\]'"):
        load_data("cifar10", download=True)


def test_augmented_batches_do_not_wait_for_a_gpu(digits, monkeypatch):
    with pretend_gpu(monkeypatch) as gpu:
        there = replace(digits.to(torch.device("cuda", 0)), augmentation=Augmentation(padding=1, flip=True))
        batches = training_batches(there, 32, seed=0, epoch=0, augment=True)
        next(batches)  # the order of the images is sent once
        gpu.events.clear()
        next(batches)
    assert gpu.count("wait") == 0
    assert gpu.count("upload") == 2
