"""Which parameters of a model take part, and how their filters lie in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from we_kernels import FilterBank

from .model.tracing import NotTracedError, trace
from .model.weights import check_weight, reason_without_layers
from .model.wrappers import joined, named_modules
from .optimizer_state import OptimizerState
from .outputs import output_layers
from .own_forward import reason_of_own_forward
from .wrapped_optimizers import parameters_of

KINDS = ("conv", "norm_scale", "norm_shift", "linear")
"""The groups of parameters that share one global threshold."""

COMPUTED = "computed from other parameters (parametrize, weight_norm or prune), so writing to it would have no effect"

ModuleFilter = str | type[nn.Module]


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


def find_targets(
    model: nn.Module,
    *,
    linear: bool,
    include: Sequence[ModuleFilter] | None,
    exclude: Sequence[ModuleFilter],
    optimizer: Optimizer | None = None,
) -> Targets:
    """Convolutions, BatchNorms and, if asked, Linears, in module order; a shared parameter is taken once.

    Names are as if there were no wrappers (torch.compile, DataParallel, activation checkpointing, ...). Left out,
    unless ``include`` names them: layers whose output is the network's, where torch.fx can trace it (and others are
    left), and adapters (LoRA).

    Raises:
        TypeError: ``model`` is not a module, or a weight cannot take part (lazy, distributed); says which and what to
            do.
        ValueError: an entry of ``include`` or ``exclude`` matches no module, the optimizer is of another model, or
            nothing is left to evolve.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    modules = dict(named_modules(model))
    check_filters(include, "include", modules)
    check_filters(exclude, "exclude", modules)
    kinds = {name: _kinds_of(module, linear) for name, module in modules.items()}
    outputs = _output_weights(model, modules) if include is None and any(kinds.values()) else set()
    trained = None
    if optimizer is not None:
        parameters = [module._parameters.get(attribute) for module, attribute in candidates(model, linear)]
        OptimizerState(optimizer, "keep").check_trains([p for p in parameters if p is not None])
        trained = set(map(id, parameters_of(optimizer)))
    choose = partial(_choose, modules, kinds, include, exclude, trained)
    items, skipped = choose(outputs)
    if not items and outputs:  # a network of output layers only
        items, skipped = choose(set())
    if not items:
        why = f"; left out: {skipped}" if skipped else f": {reason_without_layers(model)}"
        linears = "" if linear else " (Linear layers take part when linear_rate > 0)"
        raise ValueError(f"model has no trainable convolution or BatchNorm to evolve{why}{linears}")
    return Targets(items, skipped)


def _choose(
    modules: Mapping[str, nn.Module],
    kinds: Mapping[str, list[tuple[str, str]]],
    include: Sequence[ModuleFilter] | None,
    exclude: Sequence[ModuleFilter],
    trained: set[int] | None,
    outputs: set[int],
) -> tuple[list[Target], dict[str, str]]:
    """Those that take part, and the others with the reason. ``trained``, ``outputs``: identities of parameters."""
    items: list[Target] = []
    skipped: dict[str, str] = {}
    seen: set[int] = set()
    for name, module in modules.items():
        for attribute, kind in kinds[name]:
            full_name = joined(name, attribute)
            if any(matches(entry, name, module) for entry in exclude):
                skipped[full_name] = "excluded"
                continue
            if include is not None and not any(matches(entry, name, module) for entry in include):
                skipped[full_name] = "not included"
                continue
            if attribute not in module._parameters:
                skipped[full_name] = COMPUTED
                continue
            parameter = own_parameter(module, attribute, full_name)
            if parameter is None:  # BatchNorm(affine=False)
                continue
            if not parameter.requires_grad:
                skipped[full_name] = "frozen (requires_grad is False)"
            elif trained is not None and id(parameter) not in trained:
                skipped[full_name] = "not among the optimizer's parameters"
            elif id(parameter) in seen:
                skipped[full_name] = "shared with a parameter listed before"
            elif id(parameter) in outputs:
                skipped[full_name] = "its layer's output is the network's; include= brings it back"
            elif include is None and _is_adapter(name):
                skipped[full_name] = "part of an adapter (LoRA); include= brings it back"
            elif (reason := reason_of_own_forward(module)) is not None:
                skipped[full_name] = reason
            else:
                seen.add(id(parameter))
                items.append(Target(full_name, kind, module, attribute))
    return items, skipped


def candidates(model: nn.Module, linear: bool) -> list[tuple[nn.Module, str]]:
    """(module, attribute) of all parameters of the right kind, whether they take part or not."""
    return [(module, attribute) for _, module in named_modules(model) for attribute, _ in _kinds_of(module, linear)]


def _output_weights(model: nn.Module, modules: dict[str, nn.Module]) -> set[int]:
    """Identities of the weights of layers whose output is the network's; none if it cannot be traced."""
    try:
        traced = trace(model)
    except NotTracedError:
        return set()
    return {id(modules[name]._parameters.get("weight")) for name in output_layers(traced, modules)}


def _is_adapter(name: str) -> bool:
    return any(part.lower().startswith("lora_") for part in name.split("."))


def _kinds_of(module: nn.Module, linear: bool) -> list[tuple[str, str]]:
    if isinstance(module, _ConvNd):
        return [("weight", "conv")]
    if isinstance(module, _BatchNorm):
        return [("weight", "norm_scale"), ("bias", "norm_shift")]
    if linear and isinstance(module, nn.Linear):
        return [("weight", "linear")]
    return []


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
    if (
        isinstance(module, _ConvNd)
        and module.transposed
        and module.groups > 1
        and module.groups not in (module.in_channels, module.out_channels)
    ):
        raise TypeError(
            f"{name}: the filters of a transposed convolution with {module.groups} groups do not lie along one "
            f"dimension; pass exclude=[{name.rpartition('.')[0]!r}]"
        )
    return parameter


def matches(entry: ModuleFilter, name: str, module: nn.Module) -> bool:
    """Whether an entry of ``include`` or ``exclude`` means this module."""
    if isinstance(entry, str):
        return name == entry or name.startswith(f"{entry}.") or fnmatchcase(name, entry)
    return isinstance(module, entry)


def check_filters(entries: Sequence[ModuleFilter] | None, argument: str, modules: dict[str, nn.Module]) -> None:
    """Every entry of ``include`` or ``exclude`` is a name, pattern or type that matches some module.

    Raises:
        TypeError, ValueError: name the argument and the entry.
    """
    if entries is None:
        return
    if isinstance(entries, str) or not isinstance(entries, Sequence):
        raise TypeError(f"{argument} must be a list of module names, name patterns or module types, got {entries!r}")
    for entry in entries:
        if not isinstance(entry, str) and not (isinstance(entry, type) and issubclass(entry, nn.Module)):
            raise TypeError(f"{argument} must hold module names or types, got {entry!r}")
        if not any(matches(entry, name, module) for name, module in modules.items()):
            raise ValueError(f"{argument}: {entry!r} matches no module of the model")
