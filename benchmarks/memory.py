"""How fast this machine reads and copies memory: the floor under every time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

Clock = Callable[[Callable[[], object]], float]
"""Runs a function and returns how many seconds it took."""

COLUMNS = 4096
_FALLBACK_CACHE = 32 << 20


class Bandwidth(NamedTuple):
    """Best of several runs over a buffer of ``num_bytes``, with all threads. A copy moves twice its buffer."""

    num_bytes: int
    read: float
    """Bytes per second of the fastest of `readers`."""
    reader: str
    copy: float
    """Bytes per second, read and written."""


def last_level_cache(device: torch.device) -> int:
    """Bytes: of a GPU its L2; of a CPU what Linux says of the first core (32 MiB where it says nothing)."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size[:-1]) << {"K": 10, "M": 20}[size[-1]] for size in sizes), default=_FALLBACK_CACHE)


def make_buffer(num_bytes: int, device: torch.device) -> Tensor:
    """float32 [rows, 4096] of about that many bytes (at least one row), every page written."""
    return torch.ones(max(num_bytes // (4 * COLUMNS), 1), COLUMNS, device=device)


def place(tensors: list[Tensor], buffer: Tensor) -> list[Tensor]:
    """Copies of float32 tensors at a buffer's beginning, each from a multiple of 64 bytes.

    They are read as fast as the buffer is: in a virtual machine eight buffers of 256 MiB were read at 39 to 66 GB/s,
    each always at its own rate.

    Raises:
        ValueError: the buffer is too small.
    """
    flat, placed, start = buffer.view(-1), [], 0
    for tensor in tensors:
        if start + tensor.numel() > flat.numel():
            raise ValueError(f"buffer of {flat.numel()} elements is too small for {len(tensors)} tensors")
        placed.append(flat[start : start + tensor.numel()].view(tensor.shape).copy_(tensor))
        start += -(-tensor.numel() // 16) * 16
    return placed


def readers(buffer: Tensor) -> dict[str, Callable[[], object]]:
    """Multi-threaded PyTorch calls that read a buffer once and write next to nothing."""
    vector = torch.ones(COLUMNS, device=buffer.device)
    return {"sum": buffer.sum, "amax": buffer.amax, "matrix-vector product": lambda: buffer.mv(vector)}


def measure(buffer: Tensor, clock: Clock, repeats: int) -> Bandwidth:
    """Reads and copies ``buffer`` ``repeats`` times in each way; the best counts."""
    num_bytes = buffer.numel() * buffer.element_size()
    times = {name: min(clock(read) for _ in range(repeats)) for name, read in readers(buffer).items()}
    reader = min(times, key=lambda name: times[name])
    half = buffer.view(-1)[: buffer.numel() // 2]
    target = torch.empty_like(half)
    target.copy_(half)
    copy = min(clock(lambda: target.copy_(half)) for _ in range(repeats))
    return Bandwidth(num_bytes, num_bytes / times[reader], reader, 2 * half.numel() * half.element_size() / copy)


def best(first: Bandwidth, second: Bandwidth) -> Bandwidth:
    """The faster reads and the faster copies of two measurements on one buffer."""
    faster = max(first, second, key=lambda bandwidth: bandwidth.read)
    return faster._replace(copy=max(first.copy, second.copy))
