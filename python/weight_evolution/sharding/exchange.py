"""Tensors from rank to rank: one all-to-all of flat buffers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from .failures import communication
from .placement import Placement


def exchange(
    placement: Placement,
    outgoing: Sequence[Sequence[Tensor]],
    expected: Sequence[Sequence[Tensor]],
    device: torch.device,
) -> None:
    """Send tensors to each rank, and fill those that are expected from it.

    Args:
        placement: gives the group.
        outgoing: for each rank the tensors that it gets.
        expected: for each rank contiguous tensors to fill, of the sizes and dtypes, and in the order, that it sends.
        device: of all of them.

    Raises:
        ExchangeError: another rank failed or did not answer in time.
    """
    none = torch.empty(0, dtype=torch.uint8, device=device)
    sent = torch.cat([none, *(_bytes(tensor) for tensors in outgoing for tensor in tensors)])
    sizes_out = [sum(tensor.nbytes for tensor in tensors) for tensors in outgoing]
    sizes_in = [sum(tensor.nbytes for tensor in tensors) for tensors in expected]
    received = sent.new_empty(sum(sizes_in))
    with communication():
        dist.all_to_all_single(received, sent, sizes_in, sizes_out, group=placement.group)
    filled = [tensor for tensors in expected for tensor in tensors]
    for tensor, part in zip(filled, received.split([tensor.nbytes for tensor in filled]), strict=True):
        _bytes(tensor).copy_(part)


def _bytes(tensor: Tensor) -> Tensor:
    """uint8 [bytes]: a view where the tensor is contiguous."""
    return tensor.contiguous().flatten().view(torch.uint8)
