"""The convolutions of a model and their weights, to be measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from .copies import copy_model
from .weights import check_weight
from .wrappers import joined, named_modules


def convolutions(
    model: nn.Module, chosen: Callable[[str, nn.Module], bool] | None = None
) -> dict[str, tuple[_ConvNd, Tensor]]:
    """Parameter name -> convolution and weight, in module order; a shared weight once.

    A computed weight (parametrize, weight_norm, prune) is as forward would have it. The model is only read, even where
    reading computes: spectral_norm goes on with its iteration.

    Args:
        chosen: of a module's name and the module, whether it counts; all when left out.

    Raises:
        TypeError: a weight is not initialized yet.
        ValueError: a weight is not a whole one.
    """
    found: dict[str, tuple[_ConvNd, Tensor]] = {}
    seen: set[int] = set()
    for name, module in named_modules(model):
        if not isinstance(module, _ConvNd) or not (chosen is None or chosen(name, module)):
            continue
        full_name = joined(name, "weight")
        weight: Tensor | None = module._parameters.get("weight")
        if weight is None:
            weight = cast(_ConvNd, copy_model(module)).weight
        elif is_lazy(weight):
            raise TypeError(f"{full_name} is not initialized yet; run one forward pass first")
        elif id(weight) in seen:
            continue
        else:
            seen.add(id(weight))
        check_weight(full_name, module, weight)
        found[full_name] = module, weight.detach()
    return found
