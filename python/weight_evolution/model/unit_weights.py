"""The weights into and out of units: which part of a tensor belongs to which."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from ..sharding.local_part import is_distributed, local_part
from .weights import check_weight

Layer = _ConvNd | nn.Linear


def unit_count(layer: Layer) -> int:
    """Output channels of a convolution, features of a Linear."""
    return layer.out_channels if isinstance(layer, _ConvNd) else layer.out_features


def input_count(layer: Layer) -> int:
    """Input channels of a convolution, features of a Linear."""
    return layer.in_channels if isinstance(layer, _ConvNd) else layer.in_features


def unit_axis(layer: Layer) -> int:
    """The dimension of channels in a layer's input and output, from the end."""
    return -1 - len(layer.kernel_size) if isinstance(layer, _ConvNd) else -1


def is_depthwise(layer: Layer) -> bool:
    """Whether each output is of one input, so that a unit passes through."""
    return isinstance(layer, _ConvNd) and layer.groups == layer.in_channels > 1


def incoming_norms(layer: Layer) -> Tensor:
    """L1 norm of each unit's weights, without the bias, float32 or float64 [units]; of a DTensor this rank's rows."""
    magnitudes = _magnitudes(layer)
    if not (isinstance(layer, _ConvNd) and layer.transposed):
        return magnitudes.flatten(1).sum(1)
    return _by_column(magnitudes, layer)


@dataclass(frozen=True)
class OutgoingWeights:
    """Where a layer's units are in the weight of one that reads them.

    Unit u is read by the inputs ``offset + u * block`` to ``offset + (u + 1) * block`` of the reader: input channels of
    a convolution, columns of a Linear.
    """

    name: str
    """Of the reading module."""
    module: Layer
    offset: int
    block: int

    def norms(self, units: int) -> Tensor:
        """L1 norm of each unit's part, float32 or float64 [units]."""
        layer, magnitudes = self.module, _magnitudes(self.module)
        if isinstance(layer, _ConvNd) and layer.transposed:
            inputs = magnitudes.flatten(1).sum(1)
        elif isinstance(layer, _ConvNd):
            inputs = _by_column(magnitudes, layer)
        else:
            inputs = magnitudes.sum(0)
        return self._of_units(inputs, units)

    def norms_of_rows(self, units: int, first: int) -> Tensor:
        """L1 norm of what each unit's part has in this rank's rows of a DTensor: float64 [units].

        ``first``: how many rows come before them. Of convolutions that are not transposed, and Linears.
        """
        layer, magnitudes = self.module, _magnitudes(self.module)
        groups = layer.groups if isinstance(layer, _ConvNd) else 1
        kernel = list(range(2, magnitudes.dim()))
        rows = magnitudes.double().sum(kernel) if kernel else magnitudes.double()
        if groups == 1:
            return self._of_units(rows.sum(0), units)
        group = torch.arange(first, first + len(rows), device=rows.device) // (unit_count(layer) // groups)
        inputs = rows.new_zeros(groups, rows.shape[1]).index_add_(0, group, rows)
        return self._of_units(inputs.flatten(), units)

    def _of_units(self, inputs: Tensor, units: int) -> Tensor:
        own = inputs[self.offset : self.offset + units * self.block]
        return torch.unflatten(own, 0, (units, self.block)).sum(1)

    @property
    def elements(self) -> int:
        """Of each unit's part."""
        return self.module.weight.numel() // input_count(self.module) * self.block


def reason_without_weight(name: str, module: Layer) -> str | None:
    """Why a layer's weight has no parts to be read or written; None if it has."""
    weight = module._parameters.get("weight")
    if weight is None:
        return f"the weight of {name} is computed (parametrized, weight_norm, pruned)"
    if is_lazy(weight):
        return f"the weight of {name} is not initialized yet; run one forward pass first"
    if type(weight.data) is not Tensor and not is_distributed(weight):
        return f"the weight of {name} is a {type(weight.data).__name__}, not a whole tensor"
    if "forward" in vars(module):
        return f"{name} has a forward of its own, set on the module"
    plain = next(base for base in type(module).__mro__ if base.__module__.startswith("torch.nn.modules"))
    if any(
        getattr(type(module), call, None) is not getattr(plain, call, None) for call in ("forward", "_conv_forward")
    ):
        return f"{name} ({type(module).__name__}) computes something of its own"
    try:
        check_weight(f"the weight of {name}", module, weight)
    except ValueError as error:
        return str(error)
    return None


def _magnitudes(layer: Layer) -> Tensor:
    weight = local_part(layer.weight.detach())
    return (weight if weight.dtype.itemsize > 2 else weight.float()).abs()


def _by_column(magnitudes: Tensor, layer: _ConvNd) -> Tensor:
    """Sums over the rows of each group and the kernel: [groups * columns]."""
    return torch.unflatten(magnitudes, 0, (layer.groups, -1)).flatten(3).sum((1, 3)).flatten()
