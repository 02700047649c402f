"""UnitAdamW on a pretended GPU: what is launched, copied and waited for, and CUDA graphs. See `pretend_gpu`."""

import os

import pytest
import torch

from tests.pretend_gpu import Graph, pretend_gpu
from weight_evolution import UnitAdamW

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("the interpreter is off (test_gpu_methods.py runs on the GPU itself)", allow_module_level=True)
pytest.importorskip("triton")

from we_kernels.adamw.triton import launches


@pytest.fixture
def gpu(monkeypatch):
    with pretend_gpu(monkeypatch) as pretended:
        monkeypatch.setattr(launches, "launch", pretended.launch)
        yield pretended


def optimizer_of(layers, device, **options):
    """With a gradient of ones for each parameter."""
    params = []
    for i in range(layers):
        param = torch.nn.Parameter(torch.ones(3 + i, 2))
        param.grad = torch.full((3 + i, 2), 2.0)
        if device == "cuda":
            param._pretended = param.grad._pretended = 0
        params.append(param)
    return params, UnitAdamW(params, lr=0.5, weight_decay=0, **options)


def mask(device, *values):
    chosen = torch.tensor(values)
    if device == "cuda":
        chosen._pretended = 0
    return chosen


def plain(params):
    with torch._C.DisableTorchFunction():
        return [param.detach().clone() for param in params]


@pytest.mark.parametrize("layers", [1, 4])
def test_a_step_and_a_reset_do_not_wait(gpu, layers):
    params, optimizer = optimizer_of(layers, "cuda")
    optimizer.step()
    gpu.events.clear()
    optimizer.step()
    assert gpu.launches() == ["adamw_kernel"]
    assert gpu.count("wait") == 0
    assert gpu.count("upload") == 1  # what the step's number does to its size
    optimizer.reset_units_(params[0], mask("cuda", True, False, False), mask("cuda", False, True))
    optimizer.step()
    gpu.events.clear()
    optimizer.step()
    assert gpu.launches() == ["correction_kernel", "adamw_kernel"]
    assert gpu.count("wait") == 0


def test_is_the_cpus(gpu):
    found = []
    for device in ("cuda", "cpu"):
        params, optimizer = optimizer_of(2, device)
        for step in range(4):
            if step == 2:
                optimizer.reset_units_(params[0], mask(device, True, False, False))
            optimizer.step()
        found.append(plain(params))
    with torch._C.DisableTorchFunction():
        for ours, wanted in zip(*found, strict=True):
            torch.testing.assert_close(ours, wanted)


def test_a_graph_goes_on_counting(gpu):
    """Captured once, replayed: as if each step had been called."""
    found = []
    for device in ("cuda", "cpu"):
        params, optimizer = optimizer_of(2, device, capturable=True)
        optimizer.step()
        optimizer.reset_units_(params[0], mask(device, True, False, False))
        optimizer.step()
        if device == "cuda":
            graph = Graph()
            with torch.cuda.graph(graph):
                optimizer.step()
            for _ in range(3):
                graph.replay()
        else:
            for _ in range(3):
                optimizer.step()
        found.append(plain(params))
    with torch._C.DisableTorchFunction():
        for ours, wanted in zip(*found, strict=True):
            torch.testing.assert_close(ours, wanted)
