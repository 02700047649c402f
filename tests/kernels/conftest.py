"""Outputs and scratch memory of the kernels are poisoned before they run."""

import pytest


@pytest.fixture(autouse=True)
def poison(poisoned):
    """For all tests of this folder."""
