"""The GPU of tests that need one. ``GPU_TESTS_ON=cpu`` tries them on the CPU, where comparisons with it say little.

They are in files test_gpu.py beside the other tests of the same sources; ``make gpu-training`` runs them.
"""

import os

import pytest
import torch

# What cuBLAS asks for before it promises the same bits in every run; it reads it once in a process.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

CPU = torch.device("cpu")
DEVICE = torch.device(os.environ.get("GPU_TESTS_ON", "cuda"))
HAS_GPU = DEVICE.type == "cuda" and torch.cuda.is_available()
needs_device = pytest.mark.skipif(DEVICE.type == "cuda" and not HAS_GPU, reason="needs a GPU")
"""Of tests that can be tried on the CPU."""
needs_gpu = pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")
"""Of tests that cannot."""


@pytest.fixture
def full_float32():
    """No TF32 in convolutions, and cuDNN's deterministic algorithms."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


@pytest.fixture
def deterministic(full_float32):
    """Deterministic operators where PyTorch has them."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def captured(work):
    """A CUDA graph of ``work()``, which has run three times on another stream before; what graphs ask for."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph
