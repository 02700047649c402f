"""The guard of the GPU's tests leaves no test in a mode that fails the next."""

import warnings

import pytest
import torch

from tests.waiting import no_waiting


@pytest.fixture
def modes(monkeypatch):
    """Modes that were set, with torch's warning at the first."""
    seen = []

    def set_mode(mode):
        seen.append(mode)
        if len(seen) == 1:
            warnings.warn("Synchronization debug mode is a prototype feature", UserWarning, stacklevel=1)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    return seen


def test_the_mode_is_left_and_its_warning_is_no_error(modes):
    with no_waiting():
        assert modes == ["error"]
        with pytest.raises(UserWarning, match="ours"):
            warnings.warn("ours", UserWarning, stacklevel=1)
    assert modes == ["error", "default"]


def test_the_mode_is_left_after_a_wait(modes):
    def wait():
        with no_waiting():
            raise RuntimeError("called a synchronizing CUDA operation")

    with pytest.raises(RuntimeError, match="synchronizing"):
        wait()
    assert modes == ["error", "default"]
