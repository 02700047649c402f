"""Subclasses of layers that compute something else with their weight."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..sharding.local_part import is_distributed, plain_class
from .copies import copy_without_values
from .tracing import restored

_PLAIN = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    nn.Linear,
)


def reason_of_own_forward(module: nn.Module) -> str | None:
    """Why the norms of a layer's filters do not say how much they contribute; None where they do.

    A subclass with another forward (weight standardisation, binary or quantized weights) is tried on a copy: the output
    of one that merely pads, say, grows with its weight.
    """
    reason = computes_otherwise(module)
    if reason is None or _grows_with_weight(module):
        return None
    return f"{reason}: its output does not grow with it"


def computes_otherwise(module: nn.Module) -> str | None:
    """In words, that a convolution or Linear is of a subclass with a forward of its own; None for any other module."""
    plain = next((cls for cls in _PLAIN if isinstance(module, cls)), None)
    if plain is None or all(
        getattr(type(module), name, None) is getattr(plain, name, None) for name in ("forward", "_conv_forward")
    ):
        return None
    return f"{plain_class(module).__name__} computes something else than {plain.__name__}"


@torch.no_grad()
def _grows_with_weight(module: nn.Module) -> bool:
    with restored():
        try:
            sharded = any(map(is_distributed, module.parameters()))
            probe = copy_without_values(module, _whole) if sharded else copy.deepcopy(module)
            weight = probe._parameters["weight"]
            assert weight is not None
            weight.normal_()
            if probe._parameters.get("bias") is not None:
                probe._parameters["bias"] = None
            inputs = torch.randn(_input_shape(probe), dtype=weight.dtype, device=weight.device)
            once = probe.forward(inputs)
            weight.mul_(4)
            fourfold = probe.forward(inputs)
        except Exception:  # the user's code: it may need more than one argument, or anything else
            return False
    if not isinstance(once, Tensor) or not isinstance(fourfold, Tensor):
        return False
    return torch.allclose(fourfold, 4 * once, rtol=0.02, atol=0.02 * float(once.abs().max()))


def _whole(tensor: Tensor) -> Tensor:
    """Memory for all of a DTensor; any other tensor copied."""
    if not is_distributed(tensor):
        return tensor.clone()
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def _input_shape(module: nn.Module) -> tuple[int, ...]:
    if isinstance(module, _ConvNd):
        sizes = zip(module.kernel_size, module.dilation, strict=True)
        return (1, module.in_channels, *(2 * kernel * dilation for kernel, dilation in sizes))
    assert isinstance(module, nn.Linear)
    return (1, module.in_features)
