"""Being one of the processes that torchrun started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist


def started_processes() -> int | None:
    """How many processes torchrun started; None when this is not one of them."""
    launched = dist.is_available() and dist.is_torchelastic_launched()
    return int(os.environ["WORLD_SIZE"]) if launched else None


def own_device(device: torch.device) -> torch.device:
    """The GPU of this process on its machine, shared if there are too few; the CPU is everybody's."""
    if device.type != "cuda" or started_processes() is None:
        return device
    own = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    torch.cuda.set_device(own)
    return own


@contextmanager
def process_group(device: torch.device, seconds: float) -> Iterator[dist.ProcessGroup | None]:
    """The group of all started processes, with this time-out; None without torchrun.

    nccl where each process has a GPU of its own, which it insists on; else gloo.
    """
    if started_processes() is None:
        yield None
        return
    alone = device.type == "cuda" and int(os.environ["LOCAL_WORLD_SIZE"]) <= torch.cuda.device_count()
    dist.init_process_group("nccl" if alone else "gloo", timeout=timedelta(seconds=seconds))
    try:
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()
