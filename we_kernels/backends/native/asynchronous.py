"""Random subsets of filters, the snapshot of the others, and SGD that moves only the subset."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ...layout import DTYPES, Layout, Segments, layout_of
from .extension import module

GRAIN = 32768
"""PyTorch's CPU kernels cut tensors of at least so many elements into parts, for several threads."""

_PROBE = 255


def select_filters(segments: Segments, rate: Tensor, seed: int, step: Tensor, replacement: bool) -> Tensor:
    """bool [F]."""
    selected = torch.empty(segments.num_filters, dtype=torch.bool, device="cpu")
    module.select_filters(
        segments.table.data_ptr(),
        segments.num_layers,
        rate.data_ptr(),
        seed,
        step.data_ptr(),
        replacement,
        selected.data_ptr(),
        segments.num_filters,
    )
    return selected


def save_unselected_(
    weights: Sequence[Tensor], filter_dims: Sequence[int], layout: Layout, selected: Tensor, buffer: Tensor
) -> None:
    """Rows that are not selected go to their places in ``buffer``."""
    _copy(weights, layout, selected, buffer, False)


def restore_unselected_(
    weights: Sequence[Tensor], filter_dims: Sequence[int], layout: Layout, selected: Tensor, buffer: Tensor
) -> None:
    """And come back."""
    _copy(weights, layout, selected, buffer, True)


def _copy(weights: Sequence[Tensor], layout: Layout, selected: Tensor, buffer: Tensor, restore: bool) -> None:
    module.copy_unselected(
        list(map(Tensor.data_ptr, weights)),
        layout.table.data_ptr(),
        len(weights),
        selected.data_ptr(),
        selected.numel(),
        buffer.data_ptr(),
        buffer.numel(),
        restore,
        torch.get_num_threads(),
    )


def asynchronous_sgd_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    filter_dims: Sequence[int],
    selected: Tensor,
    lr: Tensor,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    first_steps: Sequence[bool],
) -> None:
    """In one pass; rounds as PyTorch's own operations do on this processor, where all tensors lie alike in memory."""
    dims, groups = [max(dim, 0) for dim in filter_dims], [0] * len(params)
    lists = [params, grads, momentum_buffers]
    tables = [layout_of(tensors, dims, groups).table if tensors else None for tensors in lists]
    fused, steps = _rounding()
    module.asynchronous_sgd(
        [list(map(Tensor.data_ptr, tensors)) for tensors in lists],
        [0 if table is None else table.data_ptr() for table in tables],
        len(params),
        bytes(dim >= 0 for dim in filter_dims),
        bytes(first_steps),
        selected.data_ptr(),
        selected.numel(),
        lr.data_ptr(),
        momentum,
        dampening,
        weight_decay,
        nesterov,
        maximize,
        fused,
        steps,
        GRAIN,
        torch.get_num_threads(),
    )


@lru_cache(maxsize=1)
def _rounding() -> tuple[bool, tuple[int, ...]]:
    """How PyTorch rounds ``a + alpha * b`` on this processor: fused in float32 and float64; and csrc's `Rounding.step`.

    ATen's loops contract it where the processor can. In float16 and bfloat16 their vector bodies round once, the
    elements that are left over the product, too.
    """
    fused = bool(_residue(torch.float32, 2.0**-12).all())
    steps = [_PROBE + 1 - int(_residue(dtype, torch.finfo(dtype).eps).count_nonzero()) for dtype in DTYPES[2:]]
    return fused, (0, 0, *(step if step <= _PROBE else 0 for step in steps))


def _residue(dtype: torch.dtype, eps: float) -> Tensor:
    """What is left of (1 + eps)^2 - (1 + 2 eps): eps^2, or 0 if the square was rounded."""
    start = torch.full((_PROBE,), -(1 + 2 * eps), dtype=dtype, device="cpu")
    return start.add_(torch.full((_PROBE,), 1 + eps, dtype=dtype, device="cpu"), alpha=1 + eps)
