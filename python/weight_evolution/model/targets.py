"""`Targets`: parameters that take part, and how their filters lie in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from we_kernels import FilterBank

from ..sharding.local_part import is_distributed, local_part
from ..sharding.meshes import Spread, placement_of
from ..sharding.placement import Placement
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
    needs_whole_filters: ClassVar[bool] = True
    """Whether a rank cannot work with parts of filters, where the parameter is a DTensor."""

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
        """The parameter, or a view of it, and the dimension along which its filters lie; of a DTensor this rank's part.

        Raises:
            TypeError: the filters of a transposed convolution with groups are not a view in this memory format.
            ValueError: the parameter is not the whole weight of its module.
        """
        parameter = self.parameter
        check_weight(self.name, self.module, parameter)
        parameter = local_part(parameter)
        tensor, dim = self.view_of(parameter)
        if tensor is not parameter and tensor.data_ptr() != parameter.data_ptr():
            raise TypeError(
                f"{self.name} must be contiguous, a transposed convolution with groups; exclude it otherwise"
            )
        return tensor, dim

    def view_of(self, tensor: Tensor) -> tuple[Tensor, int]:
        """The same of a tensor of the parameter's shape, such as its gradient."""
        return filters_of(self.module, tensor)

    @property
    def spread(self) -> Spread:
        """The parameter, for `placement_of`."""
        parameter = self.parameter
        filter_dim = self.view_of(local_part(parameter))[1]
        channel_dim = 1 - filter_dim if parameter.dim() > 1 else None
        return Spread(self.name, parameter, filter_dim, self.needs_whole_filters, channel_dim)


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
    distributed: bool = field(init=False)
    """Whether one of them is a DTensor."""
    placement: Placement | None = field(init=False, default=None)
    """Which rank has which of their filters; None: every rank has all."""
    _bank: FilterBank | None = field(default=None, repr=False)
    _every_filter: FilterBank | None = field(default=None, repr=False)
    _built_from: tuple[object, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        self.distributed = any(is_distributed(target.parameter) for target in self.items)
        if self.distributed:
            with torch.no_grad():
                self.placement = placement_of([target.spread for target in self.items])

    @property
    def kinds(self) -> list[str]:
        """The kinds that occur, in the order of the bank's groups."""
        present = {target.kind for target in self.items}
        return [kind for kind in KINDS if kind in present]

    @property
    def filter_counts(self) -> dict[str, int]:
        """Parameter name -> how many filters it has, as the bank lists them."""
        bank = self.every_filter()
        return dict(zip(bank.names, bank.sizes, strict=True))

    @torch.no_grad()
    def bank(self) -> FilterBank:
        """The bank of all targets, of DTensors this rank's part; made anew when one was replaced, moved or resized.

        Raises:
            TypeError: a parameter became a DTensor since it was looked for.
        """
        parameters = [target.parameter for target in self.items]
        held = list(map(local_part, parameters)) if self.distributed else parameters
        state = (
            *map(id, parameters),
            *map(Tensor.data_ptr, held),
            *map(attrgetter("shape"), held),
            *map(Tensor.stride, held),
        )
        if self._bank is None or state != self._built_from:
            self._bank, self._every_filter, self._built_from = self._make_bank(), None, state
        return self._bank

    @torch.no_grad()
    def every_filter(self) -> FilterBank:
        """A bank of the filters of all ranks, for functions that read no weights: `bank` where every rank has all."""
        bank = self.bank()
        if self.placement is None:
            return bank
        if self._every_filter is None:
            stand_ins = [torch.empty(size, dtype=torch.float32, device=bank.device) for size in self.placement.sizes]
            self._every_filter = FilterBank(stand_ins, groups=bank.groups, names=bank.names)
        return self._every_filter

    def _make_bank(self) -> FilterBank:
        for target in self.items:
            if not self.distributed and is_distributed(target.parameter):
                raise TypeError(
                    f"{target.name} became a DTensor since; shard the model first (fully_shard), then make the "
                    "optimizer and what evolves it"
                )
        tensors, dims = zip(*(target.filters for target in self.items), strict=True)
        tensors = tuple(map(_with_elements, self.items, tensors, dims))
        group = {kind: g for g, kind in enumerate(self.kinds)}
        groups = [group[target.kind] for target in self.items]
        bank = FilterBank(tensors, dims, groups=groups, names=[target.name for target in self.items])
        if self.placement is not None and len(bank) != len(self.items):
            raise ValueError(
                "two parameters that are sharded share their memory on this rank; tie them (one Parameter) instead"
            )
        return bank

    def __getstate__(self) -> dict[str, Any]:
        # Without the banks, which are known by identities and addresses: a copy makes its own.
        return {**self.__dict__, "_bank": None, "_every_filter": None, "_built_from": ()}


def _with_elements(target: Target, part: Tensor, filter_dim: int) -> Tensor:
    """A rank's part of a weight, or zeros in its place where that has filters, but no element of them."""
    if part.numel() or not part.shape[filter_dim] or not target.parameter.numel():
        return part
    return part.new_zeros([max(size, 1) for size in part.shape])


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
    if parameter is not None and is_lazy(parameter):
        raise TypeError(f"{name} is not initialized yet; run one forward pass first")
    if isinstance(module, _ConvNd) and not has_filters(module):
        raise TypeError(
            f"{name}: the filters of a transposed convolution with {module.groups} groups do not lie along one "
            f"dimension; pass exclude=[{name.rpartition('.')[0]!r}]"
        )
    if is_distributed(parameter) and isinstance(module, _ConvNd) and module.transposed and module.groups > 1:
        raise TypeError(
            f"{name} is a DTensor, a transposed convolution with groups, whose shards need not be whole groups; keep "
            f"it whole (ignored_params= of fully_shard) or pass exclude=[{name.rpartition('.')[0]!r}]"
        )
    return parameter
