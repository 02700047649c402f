"""One thread, and a small part of the digits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.training.training_runs import small_digits
from weight_evolution.training.data import Dataset


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return small_digits()
