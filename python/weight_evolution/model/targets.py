"""`Targets`: parameters that take part, and how their filters lie in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from we_kernels import FilterBank

from .weights import check_weight

KINDS = ("conv", "norm_scale", "norm_shift", "linear")
"""The groups of parameters that share one global threshold."""


@dataclass(frozen=True)
class Target:
    """One parameter that takes part."""

    name: str
    kind: str
    module: nn.Module
    attribute: str

    @property
    def parameter(self) -> Tensor:
        """The module's parameter as it is now."""
        # Module.__getattr__ takes three times as long, and a step asks for every parameter.
        parameter = self.module._parameters.get(self.attribute)
        if parameter is None:
            raise TypeError(f"{self.name} is no parameter any more (parametrized since?); make a new WeightEvolution")
        return parameter

    @property
    def filters(self) -> tuple[Tensor, int]:
        """The parameter, or a view of it, and the dimension along which its filters lie.

        Raises:
            TypeError: the filters of a transposed convolution with groups are not a view in this memory format.
            ValueError: the parameter is not the whole weight of its module.
        """
        parameter = self.parameter
        check_weight(self.name, self.module, parameter)
        tensor, dim = self.view_of(parameter)
        if tensor is not parameter and tensor.data_ptr() != parameter.data_ptr():
            raise TypeError(
                f"{self.name} must be contiguous, a transposed convolution with groups; exclude it otherwise"
            )
        return tensor, dim

    def view_of(self, tensor: Tensor) -> tuple[Tensor, int]:
        """The same of a tensor of the parameter's shape, such as its gradient."""
        return filters_of(self.module, tensor)


def filters_of(module: nn.Module, weight: Tensor) -> tuple[Tensor, int]:
    """A weight of this module, or a view of it, and the dimension along which its filters lie.

    That of a transposed convolution with several groups lies along one only if each group has one input or one output.
    """
    if not (isinstance(module, _ConvNd) and module.transposed):
        return weight, 0
    # [in, out / groups, *kernel]
    groups = module.groups
    if groups == 1:
        return weight, 1
    if module.out_channels == groups:  # one filter per group, of in / groups kernels
        return weight.unflatten(0, (groups, -1)).squeeze(2), 0
    return weight.flatten(0, 1).unsqueeze(1), 0  # in == groups: filters of one kernel


def has_filters(module: nn.Module) -> bool:
    """Whether the filters of the weight lie along one dimension, as `filters_of` gives it."""
    return not (
        isinstance(module, _ConvNd)
        and module.transposed
        and module.groups not in (1, module.in_channels, module.out_channels)
    )


def by_output(module: nn.Module, weight: Tensor) -> Tensor:
    """A weight of this module, [outputs, inputs of each, *kernel]; of a transposed convolution with groups, a copy."""
    if not (isinstance(module, _ConvNd) and module.transposed):
        return weight
    return torch.unflatten(weight, 0, (module.groups, -1)).transpose(1, 2).flatten(0, 1)


@dataclass
class Targets:
    """The parameters of a model that take part, in module order, and their filter bank."""

    items: list[Target]
    skipped: dict[str, str]
    """Parameters of the right kind that do not take part, and why."""
    _bank: FilterBank | None = field(default=None, repr=False)
    _built_from: tuple[object, ...] = field(default=(), repr=False)

    @property
    def kinds(self) -> list[str]:
        """The kinds that occur, in the order of the bank's groups."""
        present = {target.kind for target in self.items}
        return [kind for kind in KINDS if kind in present]

    @property
    def filter_counts(self) -> dict[str, int]:
        """Parameter name -> how many filters it has, as the bank lists them."""
        bank = self.bank()
        return dict(zip(bank.names, bank.sizes, strict=True))

    @torch.no_grad()
    def bank(self) -> FilterBank:
        """The bank of all targets; made anew when a parameter was replaced, moved or resized."""
        parameters = [target.parameter for target in self.items]
        state = (
            *map(id, parameters),
            *map(Tensor.data_ptr, parameters),
            *map(attrgetter("shape"), parameters),
            *map(Tensor.stride, parameters),
        )
        if self._bank is None or state != self._built_from:
            tensors, dims = zip(*(target.filters for target in self.items), strict=True)
            group = {kind: g for g, kind in enumerate(self.kinds)}
            groups = [group[target.kind] for target in self.items]
            self._bank = FilterBank(tensors, dims, groups=groups, names=[target.name for target in self.items])
            self._built_from = state
        return self._bank

    def __getstate__(self) -> dict[str, Any]:
        # Without the bank, which is known by identities and addresses: a copy makes its own.
        return {"items": self.items, "skipped": self.skipped, "_bank": None, "_built_from": ()}


def own_parameter(module: nn.Module, attribute: str, name: str) -> Tensor | None:
    """A module's parameter, which may be None.

    Raises:
        TypeError: it is computed from others, not initialized, or its filters do not lie along one dimension.
    """
    # _parameters, not getattr: a computed weight (parametrize, weight_norm, prune) is not among them.
    if attribute not in module._parameters:
        raise TypeError(
            f"{name} is computed from other parameters (parametrize, weight_norm or prune), so writing to it has no "
            f"effect; remove the parametrization or pass exclude=[{name.rpartition('.')[0]!r}]"
        )
    parameter = module._parameters[attribute]
    if type(parameter).__module__.startswith("torch.distributed"):
        raise TypeError(
            f"{name} is a {type(parameter).__name__} (FSDP2 or tensor parallelism): each rank has a part of it, "
            "which has no whole filters. Take the step on a gathered model (torch.distributed.checkpoint.state_dict), "
            f"or pass exclude=[{name.rpartition('.')[0]!r}]"
        )
    if parameter is not None and is_lazy(parameter):
        raise TypeError(f"{name} is not initialized yet; run one forward pass first")
    if isinstance(module, _ConvNd) and not has_filters(module):
        raise TypeError(
            f"{name}: the filters of a transposed convolution with {module.groups} groups do not lie along one "
            f"dimension; pass exclude=[{name.rpartition('.')[0]!r}]"
        )
    return parameter
