"""Random subsets of filters, the snapshot of the others, and SGD that moves only the subset."""

from __future__ import annotations

import torch
from torch import Tensor

from ..runtime.layout import Segments, forms_of, layout_of
from ..runtime.native import module
from ..runtime.torch_rounding import GRAIN, rounding
from ..runtime.view import BankView
from .rule import SgdRule, SgdTensors


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
    fused, steps = rounding()
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
