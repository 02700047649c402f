"""When the backend can run and what it says when it cannot; importing the package imports no Triton."""

import subprocess
import sys

import pytest
import torch

from we_kernels.runtime import triton as backend

CPU, CUDA = "cpu", "cuda"


def test_without_triton(monkeypatch):
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    assert "pip install" in backend.unavailable(CPU)
    assert "pip install" in backend.unavailable(CUDA)


def test_on_cpu_only_with_the_interpreter(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backend.unavailable(CPU) is None
    monkeypatch.delenv("TRITON_INTERPRET")
    assert "set TRITON_INTERPRET=1" in backend.unavailable(CPU)


def test_on_cuda_only_without_the_interpreter(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "unset" in backend.unavailable(CUDA)
    monkeypatch.delenv("TRITON_INTERPRET")
    assert backend.unavailable(CUDA) is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "is_available() is False" in backend.unavailable(CUDA)


def test_other_devices():
    pytest.importorskip("triton")
    assert "not on meta" in backend.unavailable("meta")


def test_importing_and_asking_loads_no_triton_and_no_cuda():
    code = (
        "import sys, torch, we_kernels as wk; wk.info(); "
        "assert 'triton' not in sys.modules, 'triton imported'; "
        "assert not torch.cuda.is_initialized(), 'CUDA initialized'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
