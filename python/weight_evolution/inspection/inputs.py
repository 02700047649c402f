"""Whether a network takes an input of some size."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..model.modes import evaluating
from ..tables import first_line
from ..training.errors import UserError

_SIZES = {1: "C L", 2: "C H W", 3: "C D H W"}
"""Dimensions of a convolution's kernel -> the sizes of one input."""


@torch.no_grad()
def check_input(model: nn.Module, inputs: Tensor, given: str) -> None:
    """Runs the network once on inputs [B, ...], in eval mode.

    Raises:
        UserError: it does not take them; begins with ``given``, the option that they come from.
    """
    try:
        with evaluating(model):
            model(inputs)
    except Exception as error:  # of the user's network
        size = tuple(inputs.shape[1:])
        raise UserError(f"{given}: the network takes no input of size {size}: {_reason(model, size, error)}") from error


def _reason(model: nn.Module, size: tuple[int, ...], error: Exception) -> str:
    """By the first convolution, where that is what the input does not fit; else the error's own words."""
    for name, module in model.named_modules():
        if isinstance(module, _ConvNd):
            first, dimensions = f"its first convolution ({name or 'the model'})", len(module.kernel_size)
            if len(size) != dimensions + 1:
                return f"{first} takes {_SIZES[dimensions]}, {dimensions + 1} numbers"
            if size[0] != module.in_channels:
                plural = "s" if module.in_channels > 1 else ""
                return f"{first} takes {module.in_channels} channel{plural}, not {size[0]}"
            break
    return first_line(error)
