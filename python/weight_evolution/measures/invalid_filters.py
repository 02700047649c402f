"""Counts filters that contribute next to nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..arguments import check_not_negative
from ..model.convolutions import convolutions
from ..model.targets import by_output

PUBLISHED_THRESHOLDS = (0.1, 0.01)


@torch.no_grad()
def count_invalid_filters(model: nn.Module, threshold: float = 0.1) -> tuple[int, int]:
    """Conv filters whose L1 norm (sum of magnitudes) is under the threshold, and all conv filters.

    Convolutions of 1, 2 and 3 dimensions, transposed ones too; a shared weight counts once. Waits for the device. Of a
    checkpoint: ``weight-evolution inspect``, or load it into its model. Source: Meng et al., "Filter Grafting for Deep
    Neural Networks", CVPR 2020 (arXiv 2001.05868), which uses 0.1 and 0.01.

    A filter that is not finite is not under any threshold.

    Raises:
        TypeError: ``model`` is not a module, ``threshold`` no number, or a weight is not initialized yet.
        ValueError: ``threshold`` is not a finite number from 0, or a weight is only a part of it (FSDP).
    """
    check_not_negative(threshold, "threshold")
    norms = filter_norms(convolutions(model).values())
    return count_under(norms, [threshold])[0], len(norms)


def filter_norms(convs: Iterable[tuple[_ConvNd, Tensor]]) -> Tensor:
    """L1 norm of every filter of these (module, weight), float64 [F] on the CPU; a weight given twice counts once."""
    distinct = {id(weight): (module, weight) for module, weight in convs}
    norms = [torch.linalg.vector_norm(as_rows(module, weight), 1, 1).double() for module, weight in distinct.values()]
    if not norms:
        return torch.empty(0, dtype=torch.float64, device="cpu")
    return torch.cat([part.to(norms[0].device) for part in norms]).cpu()


def count_under(norms: Tensor, thresholds: Sequence[float]) -> list[int]:
    """For each threshold the number of norms under it."""
    return [int((norms < threshold).sum()) for threshold in thresholds]


def as_rows(module: nn.Module, weight: Tensor) -> Tensor:
    """A conv's or Linear's weight as [filters, elements], half precision in float32."""
    weight = weight.detach()
    if weight.dtype in (torch.float16, torch.bfloat16):
        weight = weight.float()
    return by_output(module, weight).flatten(1)
