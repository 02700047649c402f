"""Random subsets of filters, the snapshot of the others, and SGD that moves only the subset."""

from __future__ import annotations

import torch
from torch import Tensor

from ..runtime.layout import Segments
from ..runtime.philox import LOW, philox
from ..runtime.view import BankView
from .rule import SgdRule, SgdTensors


def select_filters(segments: Segments, rate: Tensor, seed: int, step: Tensor, replacement: bool) -> Tensor:
    """bool [F]."""
    layer = segments.layer_of_filter(rate.device)
    size, start, _ = segments.table_on(rate.device)[layer].unbind(1)
    row = torch.arange(segments.num_filters, dtype=torch.int64, device=rate.device) - start
    bits = philox(row, layer, step & LOW, step >> 32 & LOW, seed)
    # A GPU's rate is not checked: NaN selects one filter, like 0.
    expected = rate.nan_to_num(0.0).clamp(0, 1) * size
    if replacement:
        draw = row < expected.floor().clamp(min=1)
        selected = torch.zeros_like(draw)
        selected[(start + (bits * size >> 32))[draw]] = True
        return selected
    by_key = bits.argsort(stable=True)
    order = by_key[layer[by_key].argsort(stable=True)]  # by layer, then by key, equals by row
    return torch.empty_like(row, dtype=torch.bool).index_put_((order,), row < expected.round().clamp(min=1))


def copy_unselected(bank: BankView, selected: Tensor, buffer: Tensor, restore: bool) -> None:
    """Filters that are not selected, to their places in ``buffer``; ``restore``: back from there."""
    unselected = (~selected).split(bank.layout.segments.sizes)
    offsets = bank.layout.byte_offsets[:-1]
    for weight, dim, offset, kept in zip(bank.weights, bank.filter_dims, offsets, unselected, strict=True):
        rows = weight.movedim(dim, 0)
        end = offset + weight.numel() * weight.element_size()
        places = buffer[offset:end].view(weight.dtype).view(rows.shape)
        target, source = (rows, places) if restore else (places, rows)
        target[kept] = source[kept]


def asynchronous_sgd_(tensors: SgdTensors, selected: Tensor, rule: SgdRule) -> None:
    """torch.optim.SGD, operation by operation; of masked parameters only the selected filters move."""
    step_size, first_filter = -float(rule.lr), 0
    for i, (param, grad, dim) in enumerate(zip(tensors.params, tensors.grads, tensors.filter_dims, strict=True)):
        update = grad.neg() if rule.maximize else grad
        if rule.weight_decay != 0:
            update = update.add(param, alpha=rule.weight_decay)
        if rule.momentum != 0:
            buffer = tensors.momentum_buffers[i]
            if tensors.first_steps[i]:
                buffer.copy_(update)
            else:
                torch._foreach_mul_([buffer], rule.momentum)  # rounds otherwise than mul_ in float16 and bfloat16
                buffer.add_(update, alpha=1 - rule.dampening)
            update = update.add(buffer, alpha=rule.momentum) if rule.nesterov else buffer
        before = param.clone()
        param.add_(update, alpha=step_size)
        if dim >= 0:
            moves = selected[first_filter : first_filter + param.shape[dim]]
            first_filter += param.shape[dim]
            param.movedim(dim, -1).copy_(torch.where(moves, param.movedim(dim, -1), before.movedim(dim, -1)))
