"""Modules that stand around another module, compute the same, and should not show in names."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

# Classes of modules that may not be imported yet; then there is no object of them either, and importing takes seconds.
_LATE_WRAPPERS = [
    ("torch._dynamo.eval_frame", "OptimizedModule", "_orig_mod"),
    ("torch.distributed.algorithms._checkpoint.checkpoint_wrapper", "ActivationWrapper", "_checkpoint_wrapped_module"),
    ("torch.distributed.fsdp.fully_sharded_data_parallel", "FullyShardedDataParallel", "_fsdp_wrapped_module"),
]


def inside(module: nn.Module) -> nn.Module | None:
    """What a wrapper wraps; None if the module is no wrapper.

    Wrappers are torch.compile's, DataParallel, DistributedDataParallel, FullyShardedDataParallel and those of
    activation checkpointing and offloading. They are recognized by their class, since a module of the user's own may
    answer to any attribute. One that has other children beside the wrapped module (in a subclass) counts as a module.
    """
    attribute = _attribute(module)
    if attribute is None or set(module._modules) != {attribute}:
        return None
    return module._modules[attribute]


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside all wrappers around it; those of its submodules stay."""
    while (inner := inside(model)) is not None:
        model = inner
    return model


def data_parallel_around(model: nn.Module) -> Iterator[DistributedDataParallel]:
    """Each DistributedDataParallel among the wrappers around a model."""
    module: nn.Module | None = model
    while module is not None:
        if isinstance(module, DistributedDataParallel):
            yield module
        module = inside(module)


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """As ``model.named_modules()``, without wrappers, and named as if there were none, at any depth."""
    yield from _walk(model, "", set())


def named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """As ``model.named_parameters()``, named as if there were no wrappers."""
    seen: set[int] = set()
    for module_name, module in named_modules(model):
        for attribute, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                yield joined(module_name, attribute), parameter


def joined(module_name: str, attribute: str) -> str:
    """The full name of a module's attribute; the outermost module is named ""."""
    return f"{module_name}.{attribute}" if module_name else attribute


def _walk(module: nn.Module, name: str, seen: set[int]) -> Iterator[tuple[str, nn.Module]]:
    module = unwrap(module)
    if id(module) in seen:
        return
    seen.add(id(module))
    yield name, module
    for attribute, child in module._modules.items():
        if child is not None:
            yield from _walk(child, joined(name, attribute), seen)


def _attribute(module: nn.Module) -> str | None:
    """Under which name a wrapper holds what it wraps."""
    if isinstance(module, (DataParallel, DistributedDataParallel)):
        return "module"
    for place, name, attribute in _LATE_WRAPPERS:
        cls = getattr(sys.modules.get(place), name, None)
        if cls is not None and isinstance(module, cls):
            return attribute
    return None
