"""Which BatchNorm follows which layer, read from the traced graph."""

from __future__ import annotations

import copy
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ..report import table
from .layers import Layer


@dataclass
class BatchNormPairs:
    """For each layer the BatchNorm that is the only consumer of its output, or why there is none."""

    names: dict[str, str | None]
    """Layer name -> BatchNorm name."""
    reasons: dict[str, str]
    """Layer name -> why it has no BatchNorm."""
    source: str
    """"torch.fx", "torch.export", "given" (all by name), "off", or "not traced"."""
    errors: list[str] = field(default_factory=list)
    """Why the model could not be traced."""

    def __str__(self) -> str:
        rows = [("layer", "batch norm", "reason")]
        rows += [(name, norm or "-", self.reasons.get(name, "")) for name, norm in self.names.items()]
        return "\n".join([f"batch norms from {self.source}", *self.errors, *table(rows)])


def find_batch_norms(
    model: nn.Module,
    layers: Sequence[Layer],
    *,
    given: Mapping[str, str | None] | None,
    example_inputs: tuple[Tensor, ...] | None,
) -> BatchNormPairs:
    """Pair each conv with its BatchNorm: as given by name, else from torch.fx, else from torch.export.

    torch.export needs ``example_inputs``. A Linear has a BatchNorm only by name: in the graph one cannot see whether
    BatchNorm1d normalizes the features or the positions.

    Raises:
        TypeError, ValueError: ``given`` names something that cannot be paired; says what.
    """
    given = _check_given(model, layers, given)
    open_layers = [layer for layer in layers if layer.name not in given]
    convs = [layer for layer in open_layers if isinstance(layer.module, _ConvNd)]
    reasons = {name: "given as None" for name, norm in given.items() if norm is None}
    reasons.update({layer.name: "not a convolution" for layer in open_layers if not isinstance(layer.module, _ConvNd)})
    errors: list[str] = []
    source, followers = "given", dict[str, list[_Follower]]()
    if convs:
        source, followers = _trace(model, convs, example_inputs, errors)
    modules = dict(model.named_modules())
    names: dict[str, str | None] = {}
    for layer in layers:
        names[layer.name] = given.get(layer.name)
        if layer.name in given or layer.name in reasons:
            continue
        if source == "not traced":
            reasons[layer.name] = "the model could not be traced"
            continue
        norm, reason = _one_follower(followers.get(layer.name, []))
        if norm is not None and modules[norm].running_var is None:
            norm, reason = None, f"{norm} keeps no running variance"
        names[layer.name] = norm
        if norm is None:
            reasons[layer.name] = reason
    return BatchNormPairs(names, reasons, source, errors)


@dataclass(frozen=True)
class _Follower:
    """What consumes the output of one call of a layer: a BatchNorm, or a description of something else."""

    norm: str | None
    other: str = ""


def _one_follower(calls: Sequence[_Follower]) -> tuple[str | None, str]:
    if not calls:
        return None, "not called in the traced graph"
    for call in calls:
        if call.norm is None:
            return None, call.other
    if len(norms := {call.norm for call in calls}) > 1:
        return None, f"called {len(calls)} times, followed by different BatchNorms ({', '.join(map(str, norms))})"
    return calls[0].norm, ""


def _trace(
    model: nn.Module, convs: Sequence[Layer], example_inputs: tuple[Tensor, ...] | None, errors: list[str]
) -> tuple[str, dict[str, list[_Follower]]]:
    # Tracing runs the user's forward, so anything may be raised.
    try:
        return "torch.fx", _followers_from_fx(model, convs)
    except Exception as error:
        errors.append(f"torch.fx: {_first_line(error)}")
    if example_inputs is None:
        errors.append("torch.export: not tried without example_inputs")
        return "not traced", {}
    try:
        return "torch.export", _followers_from_export(model, convs, example_inputs)
    except Exception as error:
        errors.append(f"torch.export: {_first_line(error)}")
    return "not traced", {}


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (_ConvNd, _BatchNorm)) or super().is_leaf_module(m, module_qualified_name)


def _followers_from_fx(model: nn.Module, convs: Sequence[Layer]) -> dict[str, list[_Follower]]:
    # As the model is called without options: a branch on one cannot be traced otherwise.
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if parameter.default is None or isinstance(parameter.default, (bool, int, float))
    }
    graph = _Tracer().trace(model, concrete_args=defaults or None)
    modules = dict(model.named_modules())
    wanted = {layer.name for layer in convs}

    def norm_of(node: fx.Node) -> str | None:
        is_norm = node.op == "call_module" and isinstance(modules[str(node.target)], _BatchNorm)
        return str(node.target) if is_norm else None

    def passes(node: fx.Node) -> bool:
        return node.op == "call_module" and isinstance(modules[str(node.target)], nn.Identity)

    followers: dict[str, list[_Follower]] = defaultdict(list)
    for node in graph.nodes:
        if node.op == "call_module" and node.target in wanted:
            followers[str(node.target)].append(_follower(node, norm_of, passes))
    return followers


def _followers_from_export(
    model: nn.Module, convs: Sequence[Layer], example_inputs: tuple[Tensor, ...]
) -> dict[str, list[_Follower]]:
    # A copy, for the mode: in training mode the graph is full of statistics.
    exported = copy.deepcopy(model).eval()
    program = torch.export.export(exported, example_inputs)
    names: dict[int, str] = {id(module): name for name, module in exported.named_modules()}
    owners = {
        id(tensor): (names[id(module)], attribute)
        for module in exported.modules()
        for attribute, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }
    signature = program.graph_signature
    tensors = dict(exported.named_parameters(remove_duplicate=False)) | dict(
        exported.named_buffers(remove_duplicate=False)
    )
    held = {
        node: owners[id(tensors[held_name])]
        for node in program.graph.nodes
        if node.op == "placeholder"
        and (held_name := {**signature.inputs_to_parameters, **signature.inputs_to_buffers}.get(node.name)) in tensors
    }
    wanted = {layer.name for layer in convs}
    modules = dict(exported.named_modules())

    def norm_of(node: fx.Node) -> str | None:
        for source in node.all_input_nodes:
            name, attribute = held.get(source, ("", ""))
            if attribute == "running_var" and isinstance(modules[name], _BatchNorm):
                return name
        return None

    followers: dict[str, list[_Follower]] = defaultdict(list)
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        for source in node.all_input_nodes:
            name, attribute = held.get(source, ("", ""))
            if attribute == "weight" and name in wanted:
                followers[name].append(_follower(node, norm_of, lambda _: False))
    return followers


def _follower(node: fx.Node, norm_of: Callable[[fx.Node], str | None], passes: Callable[[fx.Node], bool]) -> _Follower:
    users = list(node.users)
    if len(users) != 1:
        return _Follower(None, f"its output goes to {len(users)} places")
    user = users[0]
    if norm := norm_of(user):
        return _Follower(norm)
    if passes(user):
        return _follower(user, norm_of, passes)
    return _Follower(None, f"followed by {'the output' if user.op == 'output' else user.name}, not by a BatchNorm")


def _check_given(
    model: nn.Module, layers: Sequence[Layer], given: Mapping[str, str | None] | None
) -> dict[str, str | None]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise TypeError(
            f'batch_norm_pairs must be a dict {{"conv name": "batch norm name" or None}}, got {type(given).__name__}'
        )
    by_name = {layer.name: layer for layer in layers}
    norms = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    for name, norm in given.items():
        if name not in by_name:
            raise ValueError(f"batch_norm_pairs: {name!r} is not a layer to project; those are {_list(by_name)}")
        if norm is None:
            continue
        if norm not in norms:
            raise ValueError(f"batch_norm_pairs[{name!r}]: {norm!r} is not a BatchNorm; those are {_list(norms)}")
        if norms[norm].running_var is None:
            raise ValueError(f"batch_norm_pairs[{name!r}]: {norm!r} keeps no running variance; pass None instead")
        if norms[norm].num_features != by_name[name].rows:
            raise ValueError(
                f"batch_norm_pairs[{name!r}]: {norm!r} has {norms[norm].num_features} features, "
                f"the layer {by_name[name].rows} outputs"
            )
    return dict(given)


def _list(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
