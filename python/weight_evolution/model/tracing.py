"""The graph of a model's forward, from a copy without values, so that the model is as if nobody had looked."""

from __future__ import annotations

import inspect
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_map_only

from ..tables import first_line
from .copies import CannotCopyError, as_fake, copy_without_values
from .example_inputs import inputs_beside
from .regions import without_regions

_AUTOCAST = ("cpu", "cuda")


@dataclass(frozen=True)
class Trace:
    """What forward computes, and which module each node of the graph stands for."""

    graph: fx.Graph
    calls: dict[fx.Node, str]
    """Node that calls a module without submodules -> the module's name, as in `wrappers.named_modules`.

    From "torch.export" only nodes that read a weight (or a running variance) are known, which is enough for
    convolutions, Linears and BatchNorms.
    """
    source: str
    """"torch.fx" or "torch.export"."""


class NotTracedError(Exception):
    """The model could not be traced."""

    def __init__(self, reasons: list[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons
        """One for each way that was tried."""


def trace(model: nn.Module, example_inputs: tuple[Tensor, ...] | None = None) -> Trace:
    """The graph by torch.fx (arguments with simple defaults at their defaults), else by torch.export, in eval mode.

    Wrappers are seen through, at any depth. The model, the random states and torch's modes are as before, whatever
    forward does; hooks are not called. Convolutions, BatchNorms and the other modules of torch.nn are single nodes.

    Args:
        example_inputs: arguments of forward, which torch.export needs.

    Raises:
        NotTracedError: with the reason for each way.
    """
    reasons: list[str] = []
    with restored():
        # Tracing runs the user's forward, and copying the user's __deepcopy__, so anything may be raised.
        try:
            return _by_fx(copy_without_values(model))
        except CannotCopyError as error:
            raise NotTracedError([str(error)]) from error
        except Exception as error:
            reasons.append(f"torch.fx: {first_line(error)}")
        if example_inputs is None:
            raise NotTracedError([*reasons, "torch.export: not tried without example_inputs"])
        try:
            return _by_export(model, example_inputs)
        except Exception as error:
            raise NotTracedError([*reasons, f"torch.export: {first_line(error)}"]) from error


class _Tracer(fx.Tracer):
    """Calls no hooks, and leaves alone what other threads do: fx patches nn.Module for all of them."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        own = isinstance(m, (_ConvNd, _BatchNorm, torch.jit.ScriptModule))
        return own or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, m.forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


def _by_fx(model: nn.Module) -> Trace:
    # As the model is called without options: a branch on one cannot be traced otherwise.
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if parameter.default is None or isinstance(parameter.default, (bool, int, float))
    }
    graph = _Tracer().trace(model, concrete_args=defaults or None)
    calls = {node: str(node.target) for node in graph.nodes if node.op == "call_module"}
    return Trace(graph, calls, "torch.fx")


def _by_export(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> Trace:
    from torch._subclasses.fake_tensor import FakeTensorMode  # takes a second to import

    if has_global_hooks():
        raise RuntimeError("not tried, as it would call the global hooks of nn.Module")
    # Fake tensors keep their device, so constants that forward makes there go with them.
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    # In training mode the graph is full of statistics.
    exported = copy_without_values(model, partial(as_fake, fake)).eval()
    inputs = tree_map_only(Tensor, fake.from_tensor, inputs_beside(model, example_inputs))
    program = torch.export.export(exported, inputs)
    owners = {
        id(tensor): name for name, module in exported.named_modules() if (tensor := _read_by_call(module)) is not None
    }
    tensors: dict[str, Tensor] = dict(exported.named_parameters(remove_duplicate=False))
    tensors |= dict(exported.named_buffers(remove_duplicate=False))
    signature = program.graph_signature
    names: dict[str, str] = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    calls: dict[fx.Node, str] = {}
    graph = without_regions(program.graph_module)
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        for source in node.all_input_nodes:
            if (owner := owners.get(id(tensors.get(names.get(source.name, ""))))) is not None:
                calls.setdefault(node, owner)
    return Trace(graph, calls, "torch.export")


def _read_by_call(module: nn.Module) -> Tensor | None:
    """The tensor by which a call of the module is known: others may read the weight of a BatchNorm, too."""
    if isinstance(module, _BatchNorm):
        return module._buffers.get("running_var")
    return module._parameters.get("weight")


def has_global_hooks() -> bool:
    """Whether hooks of all modules are registered, which any call of a module would run."""
    kinds = ("forward_pre", "forward", "backward_pre", "backward")
    return any(getattr(nn.modules.module, f"_global_{kind}_hooks") for kind in kinds)


@contextmanager
def restored() -> Iterator[None]:
    """Random states and torch's modes are afterwards as before."""
    numpy_random = getattr(sys.modules.get("numpy"), "random", None)
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    python_state = random.getstate()
    numpy_state = numpy_random.get_state() if numpy_random is not None else None
    dtype, autocast = torch.get_default_dtype(), [torch.is_autocast_enabled(kind) for kind in _AUTOCAST]
    try:
        with torch.random.fork_rng(devices), torch.set_grad_enabled(torch.is_grad_enabled()):
            yield
    finally:
        random.setstate(python_state)
        if numpy_random is not None:
            numpy_random.set_state(numpy_state)
        torch.set_default_dtype(dtype)
        for kind, enabled in zip(_AUTOCAST, autocast, strict=True):
            torch.set_autocast_enabled(kind, enabled)
