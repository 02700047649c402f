"""Adam and AdamW in which rows and columns of a tensor may be younger than the rest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..runtime.layout import forms_of, layout_of
from ..runtime.native import module
from ..runtime.torch_rounding import GRAIN, MODE, rounding, square_roots
from .rule import AdamwRule, AdamwTensors, correction_at, lr_of, steps_of


def unit_adamw_(tensors: AdamwTensors, rule: AdamwRule) -> None:
    """In one pass; rounds as PyTorch's own operations do on this processor, where all tensors lie alike in memory."""
    lists, count = tensors[:5], len(tensors.params)
    tables = [layout_of(forms_of(each), (0,) * count).table if each else None for each in lists]
    lr, steps = lr_of(rule), steps_of(tensors)
    corrections = {step: tuple(correction_at(step, lr, rule)) for step in set(steps)}
    module.unit_adamw(
        [list(map(Tensor.data_ptr, each)) for each in lists],
        [0 if table is None else table.data_ptr() for table in tables],
        count,
        _addresses(tensors.row_resets, count),
        _addresses(tensors.column_resets, count),
        tensors.groups,
        steps,
        [corrections[step] for step in steps],
        lr,
        rule.beta1,
        rule.beta2,
        rule.eps,
        rule.weight_decay,
        rule.decoupled,
        rule.maximize,
        square_roots(),
        MODE,
        *rounding(),
        GRAIN,
        torch.get_num_threads(),
    )


def _addresses(resets: Sequence[Tensor], count: int) -> list[int]:
    """0 where nothing was ever reset: of an empty tensor."""
    return list(map(Tensor.data_ptr, resets)) or [0] * count
