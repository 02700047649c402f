"""Which tensors of a model are grafted, and which convolution each belongs to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from we_kernels import DTYPES

from ..arguments import check_model
from ..model.batch_norm_pairs import BatchNormPairs, find_batch_norms
from ..model.module_filters import ModuleChoice
from ..model.targets import filters_of, has_filters
from ..model.weights import check_weight, reason_without_layers
from ..model.wrappers import joined, named_modules
from ..sharding.local_part import is_distributed, local_part, reshard
from ..tables import in_short


@dataclass(frozen=True)
class Part:
    """A parameter or buffer that is grafted."""

    name: str
    module: nn.Module
    attribute: str
    conv: int
    """The convolution whose coefficient it has, counted from 0 in module order."""

    @property
    def whole(self) -> Tensor:
        """As it is now; perhaps a DTensor."""
        tensor: Tensor = getattr(self.module, self.attribute)
        return tensor.detach()

    @property
    def tensor(self) -> Tensor:
        """As it is now; of a DTensor this rank's part."""
        return local_part(self.whole)

    def write_(self, values: Tensor) -> None:
        """Give it, or this rank's part, these values."""
        self.tensor.copy_(values)
        if is_distributed(self.whole):  # whose own version autograd looks at
            increment_version(getattr(self.module, self.attribute))

    def filters(self, tensor: Tensor) -> tuple[Tensor, int]:
        """The tensor (or one in its place) as a bank takes it, and the dimension of its filters."""
        if tensor.dim() == 0:
            return tensor.view(1), 0
        if self.attribute != "weight" or not has_filters(self.module):
            return tensor, 0
        return filters_of(self.module, tensor)


@dataclass(frozen=True)
class Parts:
    """All parts of a model in module order, its convolutions, and what is left out."""

    items: list[Part]
    convs: dict[str, _ConvNd]
    """By the name of its weight, each convolution of which the information is measured."""
    skipped: dict[str, str]
    """Parameters and buffers that are not grafted, and why."""

    def describe(self) -> dict[str, str]:
        """Name -> dtype, shape and placement, or why it is left out, of everything; to compare with another model's."""
        described = {part.name: _describe(part.whole) for part in self.items}
        for name, why in self.skipped.items():
            measured = f", but measured: {_describe(self.convs[name].weight)}" if name in self.convs else ""
            described[name] = f"not grafted ({why}){measured}"
        return described


def find_parts(model: nn.Module, choice: ModuleChoice) -> Parts:
    """What follows a convolution in module order, up to the next, belongs to it; what comes before the first, to that.

    Entries of the choice may name parameters and buffers, too. A convolution whose weight is left out
    by them is not measured, so what follows it belongs to the one before.

    Raises:
        TypeError: ``model`` is not a module, or a tensor cannot be grafted (parametrized, pruned, lazy, sparse).
        ValueError: the model has no convolution, or none that is trainable; a weight is only a part of it; an entry of
            ``include`` or ``exclude`` matches nothing.
    """
    modules = dict(named_modules(check_model(model, "each model")))
    reshard(model)
    owners = modules | {joined(name, a): module for name, module in modules.items() for a, _ in _tensors(module)}
    choice.check(owners)
    items: list[Part] = []
    convs: dict[str, _ConvNd] = {}
    skipped: dict[str, str] = {}
    first_name: dict[int, str] = {}
    number_of: dict[int, int] = {}
    conv = 0
    for module_name, module in modules.items():
        weight_name = joined(module_name, "weight")
        if isinstance(module, (_ConvNd, _BatchNorm, nn.Linear)):
            if reason := choice.left_out(module, module_name, weight_name):
                skipped[weight_name] = reason
            else:
                _require_own_weight(module, weight_name)
                if isinstance(module, _ConvNd):
                    conv = number_of.setdefault(id(module.weight), len(convs))
                    if conv == len(convs):
                        convs[weight_name] = module
        for attribute, tensor in _tensors(module):
            name = joined(module_name, attribute)
            if reason := choice.left_out(module, module_name, name):
                skipped[name] = reason
                continue
            if is_lazy(tensor):
                raise TypeError(
                    f"{name} is not initialized yet; run one forward pass before making FilterGrafting, or pass "
                    f"exclude=[{name!r}]"
                )
            if id(tensor) in first_name:
                skipped[name] = f"shared with {first_name[id(tensor)]}"
                continue
            first_name[id(tensor)] = name
            if reason := _unfit(module, attribute, tensor):
                skipped[name] = reason
            else:
                _require_fit(tensor, name)
                items.append(Part(name, module, attribute, conv))
    if not convs:
        raise ValueError(
            "the model has no convolution whose information could be compared; nothing can be grafted: "
            + (f"left out: {in_short(skipped)}" if skipped else reason_without_layers(model))
        )
    if not any(isinstance(part.module, _ConvNd) for part in items):
        raise ValueError("no convolution of the model can be grafted; all are frozen (requires_grad is False) or empty")
    return Parts(items, convs, skipped)


@dataclass(frozen=True)
class FilterPairs:
    """Convolutions whose coefficients are those of the BatchNorm behind them, filter by filter."""

    norms: dict[int, _BatchNorm]
    """Number of the convolution -> its BatchNorm."""
    of_part: dict[str, int]
    """Name of a part -> the convolution with whose coefficients it is blended filter by filter."""
    unpaired: dict[str, str]
    """Convolution's weight -> why it has no BatchNorm of its own, and so one coefficient for all its filters."""


def find_norms(
    model: nn.Module,
    parts: Parts,
    given: Mapping[str, str | None] | None,
    example_inputs: tuple[Tensor, ...] | None,
) -> BatchNormPairs:
    """For each convolution, by the name of its module, the BatchNorm that alone takes its output.

    Raises:
        TypeError, ValueError: ``given`` names something that cannot be paired.
    """
    layers = {_module_name(name): conv for name, conv in parts.convs.items()}
    return find_batch_norms(model, layers, given=given, example_inputs=example_inputs)


def pair_up(model: nn.Module, parts: Parts, found: BatchNormPairs) -> FilterPairs:
    """The convolutions of ``parts`` with the BatchNorms of these names, as they are now."""
    modules = dict(named_modules(model))
    norms: dict[int, _BatchNorm] = {}
    unpaired: dict[str, str] = {}
    for number, (conv_name, conv) in enumerate(parts.convs.items()):
        name = _module_name(conv_name)
        norm_name = found.names[name]
        norm = modules[norm_name] if norm_name is not None else None
        if not isinstance(norm, _BatchNorm):
            unpaired[conv_name] = "; ".join([found.reasons[name], *found.errors])
        elif norm.weight is None:
            unpaired[conv_name] = f"{norm_name} has no scale"
        elif not has_filters(conv):
            unpaired[conv_name] = "its filters do not lie along one dimension"
        elif norm.num_features != conv.out_channels:
            unpaired[conv_name] = f"{norm_name} has {norm.num_features} features"
        else:
            norms[number] = norm
    members: dict[int, int] = {}
    convs = list(parts.convs.values())
    for number, norm in norms.items():
        members.setdefault(id(norm), number)
        members[id(convs[number])] = number
    of_part = {part.name: members[id(part.module)] for part in parts.items if id(part.module) in members}
    return FilterPairs(norms, of_part, unpaired)


def _describe(tensor: Tensor) -> str:
    described = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
    if not is_distributed(tensor):
        return described
    distributed: Any = tensor
    return f"{described} placed as {distributed.placements} on a mesh of shape {tuple(distributed.device_mesh.shape)}"


def _module_name(weight_name: str) -> str:
    return weight_name.rpartition(".")[0]


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for attribute, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None:
            yield attribute, tensor


def _unfit(module: nn.Module, attribute: str, tensor: Tensor) -> str | None:
    if not tensor.is_floating_point() and not tensor.is_complex():
        return f"{tensor.dtype} is counted, not learned"
    if tensor.numel() == 0:
        return "empty"
    if attribute in module._parameters:
        return None if tensor.requires_grad else "frozen (requires_grad is False)"
    if attribute in module._non_persistent_buffers_set:
        return "a buffer that is not saved (persistent=False)"
    own = [parameter for parameter in module._parameters.values() if parameter is not None]
    return "buffer of a frozen module" if own and not any(parameter.requires_grad for parameter in own) else None


def _require_own_weight(module: nn.Module, name: str) -> None:
    # _parameters, not getattr: a computed weight (parametrize, weight_norm, prune) is not among them.
    if "weight" not in module._parameters:
        raise TypeError(
            f"{name} is computed from other tensors (parametrize, weight_norm or prune), which cannot be blended one "
            f"by one; remove the parametrization first, or pass exclude=[{name.rpartition('.')[0]!r}]"
        )
    weight = module._parameters["weight"]
    if weight is None:
        if not isinstance(module, _BatchNorm):
            raise TypeError(f"{name} is None; pass exclude=[{name.rpartition('.')[0]!r}]")
    elif not is_lazy(weight):
        check_weight(name, module, weight)
        if isinstance(module, _ConvNd):  # it is measured even where it is not blended
            _require_fit(weight, name)


def _require_fit(tensor: Tensor, name: str) -> None:
    if tensor.layout != torch.strided or tensor.dtype not in DTYPES:
        raise TypeError(
            f"{name} is {tensor.dtype} of layout {tensor.layout}, which cannot be blended; pass exclude=[{name!r}]"
        )


def first_difference(there: Mapping[str, str], here: Mapping[str, str]) -> str | None:
    """In words, the first difference of two `Parts.describe`."""
    for name in [*here, *there]:
        if name not in there:
            return f"it has no {name}"
        if name not in here:
            return f"only it has {name}"
        if there[name] != here[name]:
            return f"{name} is {there[name]}, not {here[name]}"
    for a, b in zip(there, here, strict=True):
        if a != b:
            return f"{a} comes where the other has {b}"
    return None
