"""A step of Adam as two values: the tensors, and the options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class AdamwTensors(NamedTuple):
    """Per parameter; parameter, gradient and state are of one shape, dtype and device."""

    params: Sequence[Tensor]
    grads: Sequence[Tensor]
    exp_avgs: Sequence[Tensor]
    exp_avg_sqs: Sequence[Tensor]
    max_exp_avg_sqs: Sequence[Tensor]
    """Empty without amsgrad."""
    row_resets: Sequence[Tensor]
    """float32 [D0], or [0] where no row was ever reset; empty if none was anywhere. So are the columns'."""
    column_resets: Sequence[Tensor]
    """float32 [groups * D1]."""
    groups: Sequence[int]
    steps: Sequence[float]
    """This step's number; empty if it is on the device."""
    device_steps: Sequence[Tensor]
    """float32 of one element; empty if the host knows them."""


class AdamwRule(NamedTuple):
    """As in torch.optim.Adam; amsgrad is whether there are maxima."""

    lr: float
    device_lr: Tensor | None
    """float32 or float64 of one element; instead of ``lr``."""
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    decoupled: bool
    maximize: bool


class Correction(NamedTuple):
    """What an element's age does to its step, in torch's expressions of Python's floats."""

    step_size: float
    root: float
    """Divides the square root of the second moment."""


def correction_at(age: float, lr: float, rule: AdamwRule) -> Correction:
    """Both grow with the age (the step size is negative): the younger of row and column gives the smaller number."""
    return Correction((lr / (1 - rule.beta1**age)) * -1, (1 - rule.beta2**age) ** 0.5)


def lr_of(rule: AdamwRule) -> float:
    """Waits for the device, if it is there."""
    return rule.lr if rule.device_lr is None else float(rule.device_lr)


def steps_of(tensors: AdamwTensors) -> list[float]:
    """Waits for the device, if they are there."""
    return list(tensors.steps) or [float(step) for step in tensors.device_steps]
