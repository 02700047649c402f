"""The convolutions of a model and their weights, to be measured."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from we_kernels import FilterBank

from .copies import copy_model
from .module_filters import EVERYTHING, ModuleChoice
from .weights import check_weight
from .wrappers import joined


def convolutions(model: nn.Module, choice: ModuleChoice = EVERYTHING) -> dict[str, tuple[_ConvNd, Tensor]]:
    """Parameter name -> convolution and weight, in module order; a shared weight once.

    A computed weight (parametrize, weight_norm, prune) is as forward would have it. The model is only read, even where
    reading computes: spectral_norm goes on with its iteration.

    Args:
        model: the network.
        choice: those that count.

    Raises:
        TypeError, ValueError: see `ModuleChoice.modules_of`; or a weight is not initialized yet, not a whole one, or of
            a kind that `FilterBank` refuses.
    """
    found: dict[str, tuple[_ConvNd, Tensor]] = {}
    seen: set[int] = set()
    for name, module in choice.modules_of(model).items():
        if not isinstance(module, _ConvNd) or choice.left_out(module, name):
            continue
        full_name = joined(name, "weight")
        weight: Tensor | None
        if "weight" not in module._parameters:
            weight = getattr(copy_model(module), "weight", None)
        else:
            weight = module.weight
            if is_lazy(weight):
                raise TypeError(f"{full_name} is not initialized yet; run one forward pass first")
            if id(weight) in seen:
                continue
            seen.add(id(weight))
        if weight is None:
            raise TypeError(f"{full_name} is None")
        check_weight(full_name, module, weight)
        FilterBank([weight.detach()], names=[full_name])  # refuses what has no values that could be measured
        found[full_name] = module, weight.detach()
    return found
