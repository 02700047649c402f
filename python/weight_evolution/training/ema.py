"""An exponential moving average of a network in training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .checkpoint import check_model_state


class Ema:
    """Of all parameters and buffers: after each step the average keeps ``decay`` of itself. The first step is copied.

    Args:
        model: the network, on its device; it is copied.
        decay: in (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)

    @property
    def model(self) -> nn.Module:
        """The average."""
        return self._average.module

    def update(self, model: nn.Module) -> None:
        """Take a step into the average."""
        self._average.update_parameters(model)

    def state_dict(self) -> dict[str, Any]:
        """``model``, a state of such a network, and the number of ``steps`` in it."""
        return {"model": self.model.state_dict(), "steps": int(self._average.n_averaged)}

    def check(self, state: Mapping[str, Any]) -> None:
        """Raises UserError if the state is of another model."""
        check_model_state(state["model"], self.model)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume where `state_dict` was taken."""
        self.model.load_state_dict(state["model"])
        self._average.n_averaged.fill_(state["steps"])
