"""What a call of ``optimizer.step`` is: one that hooks see, one within another, one that trains nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..model.wrapped_optimizers import parameters_of


def check_hooks(optimizer: Optimizer) -> None:
    """Whether ``optimizer.step()`` runs its step hooks.

    Raises:
        TypeError: it does not; says what to do.
    """
    owner = getattr(vars(optimizer).get("step"), "__self__", optimizer)
    if not hasattr(optimizer, "_optimizer_step_pre_hooks") or not getattr(type(optimizer).step, "hooked", False):
        reason = "its class does not call Optimizer.__init__"
    elif owner is not optimizer:
        reason = f"it is that of another {type(owner).__name__}"
    else:
        return
    raise TypeError(
        f"optimizer is a {type(optimizer).__name__} whose step() runs no step hooks ({reason}), so that its steps "
        "cannot be masked; call torch.optim.Optimizer.__init__ in it, or give the optimizer that it wraps, of which "
        "alone the steps are masked then"
    )


def within_another_step(optimizer: Optimizer) -> bool:
    """Called by a step hook: whether this step runs within another of the same optimizer, as super().step() does."""
    call = sys._getframe(2)  # torch's wrapper of a class's step, which runs the hooks
    frame: FrameType | None = call.f_back
    while frame is not None:
        if frame.f_code is call.f_code and frame.f_locals.get("self") is optimizer:
            return True
        frame = frame.f_back
    return False


def only_makes_state(optimizer: Optimizer, arguments: Iterable[Any] = ()) -> bool:
    """Whether this is the step by which torch.distributed.checkpoint makes an optimizer's state: nothing can move.

    It is the first one, has no closure, and all learning rates and gradients are 0. Looks at gradients, and so waits
    for the device, only where the rest holds.
    """
    if optimizer.state or any(argument is not None for argument in arguments):
        return False
    if not all(_is_zero(group.get("lr")) for group in optimizer.param_groups):
        return False
    gradients = [parameter.grad for parameter in parameters_of(optimizer) if parameter.grad is not None]
    return bool(gradients) and not any(g.layout != torch.strided or bool(g.any()) for g in gradients)


def _is_zero(lr: Any) -> bool:
    return (not isinstance(lr, Tensor) or lr.device.type == "cpu") and lr is not None and float(lr) == 0.0
