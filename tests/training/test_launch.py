"""Processes that torchrun started, and the GPUs of their machine."""

import pytest
import torch
import torch.distributed as dist

from weight_evolution.training.launch import own_device, process_group

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def rank(monkeypatch):
    """Makes this process a rank on a machine with so many GPUs; the result holds what was asked of torch."""
    asked = {}
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: asked.update(device=device))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, timeout: asked.update(backend=backend))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)

    def be(local_rank, ranks, gpus):
        variables = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": ranks}
        for name, value in (variables | {"WORLD_SIZE": 2 * ranks}).items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        return asked

    return be


@pytest.mark.parametrize(
    ("local_rank", "ranks", "gpus", "index", "backend"),
    [(0, 2, 2, 0, "nccl"), (1, 2, 2, 1, "nccl"), (1, 2, 8, 1, "nccl"), (1, 2, 1, 0, "gloo"), (3, 4, 3, 0, "gloo")],
)
def test_ranks_share_the_gpus_there_are(rank, local_rank, ranks, gpus, index, backend):
    asked = rank(local_rank, ranks, gpus)
    assert own_device(CUDA) == torch.device("cuda", index) == asked["device"]
    with process_group(own_device(CUDA), 5.0):
        assert asked["backend"] == backend


def test_on_the_cpu_no_gpu_is_taken(rank):
    asked = rank(1, 2, 2)
    assert own_device(CPU) == CPU
    with process_group(CPU, 5.0):
        assert asked == {"backend": "gloo"}


def test_without_torchrun():
    assert own_device(CUDA) == CUDA
    with process_group(CUDA, 5.0) as group:
        assert group is None
