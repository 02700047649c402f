"""Random subsets of filters, the snapshot of the others, and SGD that moves only the subset."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ..runtime.layout import DTYPES, Segments, forms_of, layout_of
from ..runtime.native import module
from ..runtime.view import BankView
from .rule import SgdRule, SgdTensors

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


def copy_unselected(bank: BankView, selected: Tensor, buffer: Tensor, restore: bool) -> None:
    """Filters that are not selected, to their places in ``buffer``; ``restore``: back from there."""
    module.copy_unselected(
        list(bank.addresses),
        bank.layout.table.data_ptr(),
        len(bank.addresses),
        selected.data_ptr(),
        selected.numel(),
        buffer.data_ptr(),
        buffer.numel(),
        restore,
        torch.get_num_threads(),
    )


def asynchronous_sgd_(tensors: SgdTensors, selected: Tensor, rule: SgdRule) -> None:
    """In one pass; rounds as PyTorch's own operations do on this processor, where all tensors lie alike in memory."""
    dims = tuple(max(dim, 0) for dim in tensors.filter_dims)
    lists = tensors.params, tensors.grads, tensors.momentum_buffers
    tables = [layout_of(forms_of(each), dims).table if each else None for each in lists]
    fused, steps = _rounding()
    module.asynchronous_sgd(
        [list(map(Tensor.data_ptr, each)) for each in lists],
        [0 if table is None else table.data_ptr() for table in tables],
        len(dims),
        bytes(dim >= 0 for dim in tensors.filter_dims),
        bytes(tensors.first_steps),
        selected.data_ptr(),
        selected.numel(),
        rule.lr.data_ptr(),
        rule.momentum,
        rule.dampening,
        rule.weight_decay,
        rule.nesterov,
        rule.maximize,
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
