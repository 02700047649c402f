"""An exponential moving average of a network in training."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from weight_evolution.sharding.local_part import local_part, reshard

from .checkpoint import check_model_state
from .parallel import ALONE, Ranks


class Ema:
    """Of all parameters and buffers: after each step the average keeps ``decay`` of itself. The first step is copied.

    Args:
        model: the network, on its device, before it is placed on the ranks; it is copied.
        decay: in (0, 1).
        ranks: the processes that train it. Each averages what it has of the network.
    """

    def __init__(self, model: nn.Module, decay: float, ranks: Ranks = ALONE) -> None:
        self.model = copy.deepcopy(model)
        """The average."""
        self._ranks = ranks
        self._steps = 0
        self._average = get_ema_multi_avg_fn(decay)
        ranks.spread(self.model)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take a step into the average."""
        pairs: dict[torch.dtype, list[tuple[Tensor, Tensor]]] = {}
        for own, new in zip(_tensors(self.model), _tensors(model), strict=True):
            pairs.setdefault(own.dtype, []).append((own, new))
        for of_dtype in pairs.values():
            owns, news = map(list, zip(*of_dtype, strict=True))
            if self._steps == 0:
                torch._foreach_copy_(owns, news)
            else:
                self._average(owns, news, self._steps)
        self._steps += 1

    def state_dict(self) -> dict[str, Any]:
        """``model``, a state of such a network, and the number of ``steps`` in it."""
        return {"model": self.model.state_dict(), "steps": self._steps}

    def check(self, state: Mapping[str, Any]) -> None:
        """Raises UserError if the state is of another model."""
        check_model_state(state["model"], self.model)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume where `state_dict` was taken."""
        self._ranks.load(self.model, state["model"])
        self._steps = int(state["steps"])


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """All parameters and buffers; of DTensors this rank's part."""
    reshard(model)
    return (local_part(tensor.detach()) for tensor in chain(model.parameters(), model.buffers()))
