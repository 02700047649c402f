import sys
import types

import numpy as np
import pytest
import torch

from weight_evolution.training.data import load_data, training_batches
from weight_evolution.training.data.augmentation import Augmentation
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


def test_unknown_data():
    with pytest.raises(UserError, match=r"--data must be one of digits.*'mnist'"):
        load_data("mnist")


def test_missing_scikit_learn_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"weight-evolution\[train\]"):
        load_data("digits")


def test_missing_torchvision_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(UserError, match=r"weight-evolution\[vision\]"):
        load_data("cifar10")


class FakeCifar:
    """What torchvision.datasets.CIFAR10 offers."""

    def __init__(self, root, train, download):
        if root == "nowhere":
            raise RuntimeError("Dataset not found or corrupted. You can use download=True to download it\nmore")
        count = 6 if train else 4
        self.data = np.arange(count * 32 * 32 * 3, dtype=np.uint32).astype(np.uint8).reshape(count, 32, 32, 3)
        self.targets = list(range(count))


@pytest.fixture
def torchvision(monkeypatch):
    datasets = types.SimpleNamespace(CIFAR10=FakeCifar, CIFAR100=FakeCifar)
    module = types.ModuleType("torchvision")
    module.datasets = datasets
    monkeypatch.setitem(sys.modules, "torchvision", module)


@pytest.mark.usefixtures("torchvision")
def test_cifar_through_torchvision(tmp_path):
    data = load_data("cifar100", tmp_path)
    assert data.num_classes == 100
    assert data.train_images.shape == (6, 3, 32, 32)
    assert data.test_images[1, 2, 3, 4] == FakeCifar("", False, False).data[1, 3, 4, 2]
    assert data.augmentation == Augmentation(padding=4, flip=True)


@pytest.mark.usefixtures("torchvision")
def test_missing_cifar_says_how_to_get_it():
    with pytest.raises(UserError, match="--download to fetch it"):
        load_data("cifar10", "nowhere")
