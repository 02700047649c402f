"""What becomes of an optimizer's memory of weights that were overwritten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# Per-element state that does not start at zero: Adagrad's sum, Rprop's step size, ASGD's average of the weight.
_INITIAL = {"sum": "initial_accumulator_value", "step_size": "lr"}
_AVERAGES = {"ax"}


def optimizer_to_reset(optimizer: Optimizer | None, optimizer_state: str) -> Optimizer | None:
    """The optimizer whose state is to be reset; None for "keep".

    Raises:
        ValueError: ``optimizer_state`` is neither "keep" nor "reset", or "reset" comes without an optimizer.
    """
    if optimizer_state not in ("keep", "reset"):
        raise ValueError(f'optimizer_state must be "keep" or "reset", got {optimizer_state!r}')
    if optimizer_state == "keep":
        return None
    if not isinstance(optimizer, Optimizer):
        raise ValueError('optimizer_state="reset" needs optimizer=, the torch.optim.Optimizer whose state to reset')
    return optimizer


class StateReset:
    """Gives replaced elements the optimizer state of a fresh parameter.

    Takes a copy of the parameters when made, so make it before the step and call `apply_` after. Covers all state
    tensors of a parameter's own shape; factored state (Adafactor's rows and columns) belongs to no element and stays.
    """

    def __init__(self, optimizer: Optimizer, parameters: Sequence[Tensor]) -> None:
        self._optimizer = optimizer
        self._before = {parameter: parameter.detach().clone() for parameter in parameters}

    @torch.no_grad()
    def apply_(self) -> None:
        """Reset the state of every element that differs from the copy."""
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                before = self._before.get(parameter)
                state = self._optimizer.state.get(parameter)
                if before is None or not state:
                    continue
                # A NaN differs from itself, but where there is one, nothing was replaced.
                changed = (parameter != before) & (before == before)
                for key, value in state.items():
                    if isinstance(value, Tensor) and value.shape == parameter.shape:
                        value.copy_(torch.where(changed, _fresh(key, parameter, group).to(value), value))


def _fresh(key: str, parameter: Tensor, group: dict[str, Any]) -> Tensor:
    if key in _AVERAGES:
        return parameter.detach()
    initial = group.get(_INITIAL.get(key, ""), 0.0)
    if isinstance(initial, Tensor):  # a learning rate that the optimizer keeps on the device
        return initial.to(parameter.dtype)
    # Not as_tensor: copying a number to a GPU waits for it.
    return torch.full((), initial, dtype=parameter.dtype, device=parameter.device)
