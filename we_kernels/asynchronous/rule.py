"""A step of SGD as two values: the tensors, and the options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class SgdTensors(NamedTuple):
    """Per parameter, all of one shape, dtype and device."""

    params: Sequence[Tensor]
    grads: Sequence[Tensor]
    momentum_buffers: Sequence[Tensor]
    """Empty without momentum."""
    filter_dims: Sequence[int]
    """-1: all of the parameter moves."""
    first_steps: Sequence[bool]
    """The momentum buffer holds nothing yet."""


class SgdRule(NamedTuple):
    """As in torch.optim.SGD."""

    lr: Tensor
    """float64 [1] on the parameters' device."""
    momentum: float
    dampening: float
    weight_decay: float
    nesterov: bool
    maximize: bool
