"""All randomness of a run is a function of its seed and of what it is for, so resuming needs no generator states."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..model import seeds


def stream_seed(*parts: str | int) -> int:
    """A 63-bit seed that depends on all parts, such as ``("order", seed, epoch)``."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator(*parts: str | int) -> torch.Generator:
    """A CPU generator for `stream_seed` of the parts; the same draws on every device."""
    return torch.Generator().manual_seed(stream_seed(*parts))


@contextmanager
def seeded(device: torch.device, *parts: str | int) -> Iterator[None]:
    """Within: torch's global generators (initialization, dropout) are seeded; after: they are as before."""
    with seeds.seeded(device, stream_seed(*parts)):
        yield
