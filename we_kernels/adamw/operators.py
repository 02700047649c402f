"""Adam and AdamW in which rows and columns of a tensor may be younger than the rest."""

from __future__ import annotations

from ..operator import Operator
from .rule import AdamwRule, AdamwTensors

unit_adamw_ = Operator(
    "unit_adamw_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
    "Tensor(d!)[] max_exp_avg_sqs, Tensor[] row_resets, Tensor[] column_resets, int[] groups, float[] steps, "
    "Tensor[] device_steps, float lr, Tensor? device_lr, float beta1, float beta2, float eps, float weight_decay, "
    "bool decoupled, bool maximize) -> ()",
    [AdamwTensors, AdamwRule],
    {"torch": "reference", "native": "native", "triton": "triton"},
    __package__,
)
