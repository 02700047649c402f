"""The convolutions of a model and their weights, to be measured."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from we_kernels import FilterBank

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
        TypeError, ValueError: a weight is not initialized yet, not a whole one, or of a kind that `FilterBank` refuses.
    """
    found: dict[str, tuple[_ConvNd, Tensor]] = {}
    seen: set[int] = set()
    for name, module in named_modules(model):
        if not isinstance(module, _ConvNd) or not (chosen is None or chosen(name, module)):
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
