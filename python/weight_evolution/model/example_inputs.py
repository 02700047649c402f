"""Example inputs are where the model is."""

from __future__ import annotations

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only


def inputs_beside(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The inputs, with what they hold, on the device of the model's parameters; as given if those are on several.

    A Trainer moves the model only after its callbacks were given their examples.
    """
    devices = {parameter.device for parameter in model.parameters()}
    if len(devices) != 1:
        return inputs
    moved: tuple[Tensor, ...] = tree_map_only(Tensor, lambda tensor: tensor.detach().to(*devices), inputs)
    return moved
