import numpy as np
import pytest
import torch

from experiments.continual import Stream, has_true_labels, load_images
from weight_evolution.training import UserError

IMAGES = load_images("digits")


def stream(labels, seed=0, count=100):
    return Stream(IMAGES, labels, count, seed)


def test_random_labels_on_the_same_images():
    tasks = [stream("random").task(number) for number in range(2)]
    assert torch.equal(tasks[0][0], tasks[1][0])
    assert len(tasks[0][0].unique()) == 100
    assert 0.02 < (tasks[0][1] == tasks[1][1]).float().mean() < 0.25
    assert set(tasks[0][1].tolist()) == set(range(10))
    other = stream("random", seed=1).task(0)
    assert not torch.equal(other[0], tasks[0][0])
    assert all(torch.equal(a, b) for a, b in zip(stream("random").task(1), tasks[1], strict=True))


def test_true_labels():
    for labels, task in (("true", 0), ("true", 3), ("noise", 1)):
        assert has_true_labels(labels, task)
        indices, own = stream(labels).task(task)
        assert torch.equal(own, IMAGES.train_labels[indices])
    assert not has_true_labels("noise", 2)
    indices, own = stream("noise").task(2)
    assert (own == IMAGES.train_labels[indices]).float().mean() < 0.3
    assert not any(has_true_labels(labels, 1) for labels in ("random", "pairs"))


def test_pairs():
    seen = set()
    for number in range(10):
        indices, labels = stream("pairs").task(number)
        assert len(indices.unique()) == len(indices) == 100
        classes = [set(IMAGES.train_labels[indices[labels == label]].tolist()) for label in range(2)]
        assert [len(own) for own in classes] == [1, 1]
        seen.add((*classes[0], *classes[1]))
    assert len(seen) > 5
    assert stream("pairs").classes == 2
    assert len(stream("pairs", count=10_000).task(0)[0]) == 2 * torch.bincount(IMAGES.train_labels).min()


def test_order():
    order = stream("random").order(0, 250)
    assert len(order) == 250
    for start in (0, 100):
        assert order[start : start + 100].sort().values.equal(torch.arange(100))
    assert not torch.equal(order[:100], order[100:200])
    assert not torch.equal(order, stream("random").order(1, 250))


def test_npz(tmp_path):
    draws = np.random.default_rng(0)
    arrays = {
        "train_images": draws.integers(256, size=(30, 32, 32, 3), dtype=np.uint8),
        "train_labels": np.arange(30) % 3,
        "test_images": draws.integers(256, size=(12, 32, 32, 3), dtype=np.uint8),
        "test_labels": np.arange(12) % 3,
    }
    np.savez(tmp_path / "a.npz", **arrays)
    images = load_images(f"npz:{tmp_path / 'a.npz'}")
    assert images.train.shape == (30, 3, 16, 16)
    assert images.test.shape == (12, 3, 16, 16)
    assert images.classes == 3
    first = torch.from_numpy(arrays["train_images"][:, 0:2, 0:2]).float().mean((1, 2))
    pooled = images.train[:, :, 0, 0]
    assert torch.corrcoef(torch.stack([first[:, 0], pooled[:, 0]]))[0, 1] > 0.9999
    torch.testing.assert_close(images.train.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(images.train.std((0, 2, 3)), torch.ones(3))

    np.savez(tmp_path / "b.npz", **{**arrays, "test_images": arrays["test_images"].astype(np.float32)})
    with pytest.raises(UserError, match="test_images must be uint8"):
        load_images(f"npz:{tmp_path / 'b.npz'}")
    np.savez(tmp_path / "c.npz", train_images=arrays["train_images"])
    with pytest.raises(UserError, match="train_labels"):
        load_images(f"npz:{tmp_path / 'c.npz'}")
