"""One thread, and a small part of the digits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from weight_evolution.training.data import Dataset, load_data


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """A tenth of the digits, to be quick."""
    whole = load_data("digits")
    return Dataset(
        "digits",
        whole.train_images[:90],
        whole.train_labels[:90],
        whole.test_images[:70],
        whole.test_labels[:70],
        10,
        whole.augmentation,
    )
