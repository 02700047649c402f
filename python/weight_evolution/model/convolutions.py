"""The convolutions of a model and their weights, to be measured."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from we_kernels import FilterBank

from ..sharding.local_part import reshard
from .copies import copy_model
from .module_filters import EVERYTHING, ModuleChoice
from .weights import check_weight
from .wrappers import joined


def convolutions(model: nn.Module, choice: ModuleChoice = EVERYTHING) -> dict[str, tuple[_ConvNd, Tensor]]:
    """Parameter name -> convolution and weight, in module order; a shared weight once.

    The model is only read, even where reading computes: see `measured_weight`.

    Args:
        model: the network.
        choice: those that count.

    Raises:
        TypeError, ValueError: see `ModuleChoice.modules_of`; or a weight is not initialized yet, not a whole one, or of
            a kind that `FilterBank` refuses.
    """
    found: dict[str, tuple[_ConvNd, Tensor]] = {}
    seen: set[int] = set()
    modules = choice.modules_of(model)
    reshard(model)
    for name, module in modules.items():
        if not isinstance(module, _ConvNd) or choice.left_out(module, name):
            continue
        parameter = module._parameters.get("weight")
        if parameter is not None and id(parameter) in seen:
            continue
        seen.add(id(parameter))
        full_name = joined(name, "weight")
        found[full_name] = module, measured_weight(full_name, module)
    return found


def measured_weight(name: str, module: nn.Module) -> Tensor:
    """The weight of a module, as forward would have it, without gradient; only read.

    A computed one (parametrize, weight_norm, prune) is read from a copy: spectral_norm goes on with its iteration.

    Args:
        name: of the weight, for messages.

    Raises:
        TypeError, ValueError: the weight is not initialized yet, not a whole one, or of a kind that `FilterBank`
            refuses.
    """
    weight: Tensor | None = module._parameters.get("weight")
    if "weight" not in module._parameters:
        weight = getattr(copy_model(module), "weight", None)
    if weight is None:
        raise TypeError(f"{name} is None")
    if is_lazy(weight):
        raise TypeError(f"{name} is not initialized yet; run one forward pass first")
    check_weight(name, module, weight)
    FilterBank([weight.detach()], names=[name])  # refuses what has no values that could be measured
    return weight.detach()
