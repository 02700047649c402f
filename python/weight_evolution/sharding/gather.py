"""Numbers of all ranks on every rank, and the same news on every rank when one fails."""

from __future__ import annotations

from collections.abc import Callable
from zlib import crc32

import torch
import torch.distributed as dist
from torch import Tensor

from .failures import ExchangeError, communication
from .placement import Placement

HEADER = 3
"""float32 numbers before a rank's own: whether it failed, and 2 x 16 bits of what all must agree about."""


def gather(placement: Placement, compute: Callable[[], Tensor], size: int, agreed: str, device: torch.device) -> Tensor:
    """float32 [ranks, size]: what each rank computes, the same bits on every rank. One all-gather.

    A rank whose computation raises takes part all the same and tells the others, so that none waits for it.

    Args:
        placement: gives the group.
        compute: gives at most ``size`` float32 numbers.
        size: the same on all ranks.
        agreed: what must be the same on all ranks, for the error.
        device: of the weights.

    Raises:
        ExchangeError: another rank failed or did not answer in time, or has something else in ``agreed``.
    """
    failure: Exception | None = None
    block = torch.zeros(HEADER + size, dtype=torch.float32, device=device)
    mark = crc32(agreed.encode())
    try:
        values = compute()
        block[HEADER : HEADER + len(values)] = values
    except Exception as error:
        failure = error
    block[:HEADER] = torch.tensor([float(failure is not None), mark >> 16, mark & 0xFFFF], device="cpu").to(device)
    rows = block.new_empty(placement.ranks, len(block))
    with communication():
        dist.all_gather(list(rows.unbind()), block, group=placement.group)
    if failure is not None:
        raise failure
    failed, *marks = rows[:, :HEADER].T.cpu()
    if failed.any():
        ranks = ", ".join(map(str, failed.nonzero().flatten().tolist()))
        raise ExchangeError(
            f"rank {ranks} of the group failed, for the reason that it gives itself; nothing was changed on any rank"
        )
    if any(bool((part != part[0]).any()) for part in marks):
        raise ExchangeError(
            f"the ranks of the group are about to do different things (this one: {agreed}); give all of them the same "
            "epoch, options and loaded state; nothing was changed on any rank"
        )
    return rows[:, HEADER:]


def as_float32(numbers: Tensor) -> Tensor:
    """float32, two for each float64 number, with its bits: for `gather`, which only copies them."""
    return numbers.contiguous().flatten().view(torch.float32)


def as_float64(rows: Tensor) -> Tensor:
    """float64 [ranks, numbers] of what `as_float32` gave on all ranks."""
    flat = rows.flatten().clone()  # aligned to 8 bytes
    return flat.view(torch.float64).view(len(rows), rows.shape[1] // 2)
