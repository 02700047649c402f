"""Common to all tests. Triton's interpreter must be chosen before Triton is imported anywhere in the process."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest

import we_kernels as wk
from tests import tiers
from we_kernels.runtime import backends

CPU_BACKENDS = ("torch", "native", "triton")


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="also what takes long: see tests/tiers.py")


def pytest_collection_modifyitems(config, items):
    if tiers.deselects(config):
        left_out = set(tiers.left_out(items))
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture(params=CPU_BACKENDS)
def backend(request):
    """Each backend that can work on CPU tensors (Triton through its interpreter), forced for the test."""
    name = request.param
    reason = backends.unavailable(name, "cpu")
    if reason:
        pytest.skip(f"{name}: {reason}")
    with wk.use_backend(name):
        yield name


POISON = {
    torch.float32: torch.nan,
    torch.float64: torch.nan,
    torch.int32: -99,
    torch.int64: -99,
    torch.uint8: 0x5A,
    torch.bool: True,
}


@pytest.fixture
def poisoned(monkeypatch):
    """What `torch.empty` gives holds NaN, -99 or the like: an element that a kernel leaves out shows."""
    empty = torch.empty

    def full_of_poison(*args, dtype=None, **kwargs):
        tensor = empty(*args, dtype=dtype, **kwargs)
        if dtype not in POISON:
            return tensor
        with torch.no_grad():  # Inductor asks for leaves that require gradients
            return tensor.fill_(POISON[dtype])

    monkeypatch.setattr(torch, "empty", full_of_poison)
