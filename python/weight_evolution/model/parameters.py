"""Which parameters of a model take part in an evolution."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.optim import Optimizer

from ..sharding.local_part import reshard
from ..tables import in_short
from .module_filters import ModuleChoice
from .optimizer_state import OptimizerState
from .outputs import output_layers
from .own_forward import reason_of_own_forward
from .targets import Target, Targets, own_parameter
from .tracing import NotTracedError, trace
from .weights import reason_without_layers
from .wrapped_optimizers import parameters_of
from .wrappers import joined, named_modules

COMPUTED = "computed from other parameters (parametrize, weight_norm or prune), so writing to it would have no effect"


def find_targets(
    model: nn.Module, choice: ModuleChoice, *, linear: bool, optimizer: Optimizer | None = None
) -> Targets:
    """Convolutions, BatchNorms and, if asked, Linears, in module order; a shared parameter is taken once.

    Names are as if there were no wrappers (torch.compile, DataParallel, activation checkpointing, ...). Left out,
    unless the choice includes them by name: layers whose output is the network's, where torch.fx can trace it (and
    others are left), and adapters (LoRA).

    Raises:
        TypeError: ``model`` is not a module, or a weight cannot take part (lazy, distributed); says which and what to
            do.
        ValueError: an entry of ``include`` or ``exclude`` matches no module, the optimizer is of another model, or
            nothing is left to evolve.
    """
    modules = choice.modules_of(model)
    reshard(model)
    kinds = {name: _kinds_of(module, linear) for name, module in modules.items()}
    outputs = _output_weights(model, modules) if choice.include is None and any(kinds.values()) else set()
    trained = None
    if optimizer is not None:
        found = [module._parameters.get(attribute) for module, attribute in candidates(model, linear)]
        if parameters := [parameter for parameter in found if parameter is not None]:
            OptimizerState(optimizer, "keep").check_trains(parameters)
        trained = set(map(id, parameters_of(optimizer)))
    choose = partial(_choose, modules, kinds, choice, trained)
    items, skipped = choose(outputs)
    if not items and outputs:  # a network of output layers only
        items, skipped = choose(set())
    if not items:
        why = f"; left out: {in_short(skipped)}" if skipped else f": {reason_without_layers(model)}"
        linears = "" if linear else " (Linear layers take part when linear_rate > 0)"
        raise ValueError(f"model has no trainable convolution or BatchNorm to evolve{why}{linears}")
    return Targets(items, skipped)


def _choose(
    modules: Mapping[str, nn.Module],
    kinds: Mapping[str, list[tuple[str, str]]],
    choice: ModuleChoice,
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
            if reason := choice.left_out(module, name):
                skipped[full_name] = reason
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
            elif choice.include is None and _is_adapter(name):
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
