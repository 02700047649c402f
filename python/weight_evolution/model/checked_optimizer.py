"""What the optimizers of this package share: groups that are checked before they are added."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch.optim import Optimizer

import we_kernels as wk


class CheckedOptimizer(Optimizer):
    """An optimizer whose step is a kernel, so that it takes what that takes; to be derived from before PyTorch's."""

    _instead: ClassVar[str]
    """What to use where the step must be differentiable."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As in PyTorch's optimizer.

        Raises:
            TypeError, ValueError: a parameter or an option is not supported; no group is added.
        """
        super().add_param_group(param_group)
        try:
            self._check_group(self.param_groups[-1])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def _check_group(self, group: dict[str, Any]) -> None:
        if group["differentiable"]:
            raise ValueError(f"differentiable=True is not supported; use {self._instead}")
        for i, param in enumerate(group["params"]):
            if param.dtype not in wk.DTYPES:
                raise TypeError(f"params[{i}] must be float32, float64, float16 or bfloat16, got {param.dtype}")
            if param.layout != torch.strided or param.dim() > wk.MAX_DIMS:
                raise TypeError(f"params[{i}] must be a dense tensor of at most {wk.MAX_DIMS} dimensions")


def loss_of(closure: Callable[[], Any] | None) -> Any:
    """What the closure of a step returns, which may compute gradients; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
