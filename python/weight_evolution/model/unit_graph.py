"""The unit graph: for every layer whose units can take part, the weights into and out of them.

A unit is an output channel of a convolution or a feature of a Linear. Its incoming weights are its row of the layer's
weight, its outgoing weights what other layers multiply its output with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import ParametrizationList

from ..tables import table
from .module_filters import ModuleChoice, ModuleFilter
from .shapes import shapes_of
from .tracing import NotTracedError, Trace, trace
from .unit_flow import Flow, UnitFlows
from .unit_span import NotUnderstoodError, UnitSpan
from .unit_weights import (
    Layer,
    OutgoingWeights,
    incoming_norms,
    reason_without_weight,
    unit_count,
)
from .wrappers import named_modules


@dataclass(frozen=True)
class ActivationPlace:
    """Where the activation of a layer's units can be seen: in what a module puts out, or in what it is given."""

    name: str
    module: nn.Module
    is_output: bool
    """Of the module; else its first input."""
    span: UnitSpan
    """Where the units are in that tensor."""


@dataclass(frozen=True)
class UnitLayer:
    """A layer whose units can take part."""

    name: str
    module: Layer
    norm_name: str | None
    norm: nn.Module | None
    """The BatchNorm that is the only reader of the layer's output."""
    activations: tuple[ActivationPlace, ...]
    """Behind the first nonlinearity on each way; without one, what the next layer reads."""
    outgoing: tuple[OutgoingWeights, ...]
    """All weights that read the units."""
    depthwise: tuple[OutgoingWeights, ...] = ()
    """Where the units are in the depthwise convolutions between the two."""

    @property
    def units(self) -> int:
        """How many."""
        return unit_count(self.module)

    @property
    def bias(self) -> Tensor | None:
        """[units]."""
        return self.module.bias

    def incoming_norms(self) -> Tensor:
        """L1 norm of each unit's incoming weights, without its bias: float32 or float64 [units]."""
        return incoming_norms(self.module)

    def outgoing_norms(self) -> Tensor:
        """L1 norm of each unit's outgoing weights: float32 or float64 [units]."""
        return torch.stack([reader.norms(self.units) for reader in self.outgoing]).sum(0)

    @property
    def outgoing_elements(self) -> int:
        """How many outgoing weights each unit has."""
        return sum(reader.elements for reader in self.outgoing)


@dataclass
class UnitGraph:
    """The layers of a model whose units can take part, and why the others cannot."""

    layers: dict[str, UnitLayer]
    """By name, in module order."""
    skipped: dict[str, str]
    """Layer name -> reason."""
    source: str
    """"torch.fx", "torch.export" or "not traced"."""
    errors: list[str] = field(default_factory=list)
    """Why the model could not be traced, or its shapes not be found."""

    def __str__(self) -> str:
        rows = [("layer", "units", "norm", "read by")]
        for name, layer in self.layers.items():
            rows.append((name, str(layer.units), layer.norm_name or "-", ", ".join(r.name for r in layer.outgoing)))
        lines = [f"units from {self.source}", *self.errors, *table(rows)]
        return "\n".join(lines + [f"skipped {name}: {reason}" for name, reason in self.skipped.items()])


def find_units(
    model: nn.Module,
    *,
    include: Sequence[ModuleFilter] | None = None,
    exclude: Sequence[ModuleFilter] = (),
    example_inputs: tuple[Tensor, ...] | None = None,
) -> UnitGraph:
    """The unit graph from torch.fx, else from torch.export, of a model that is only read.

    Followed are units through BatchNorm and InstanceNorm, functions of single elements, pooling, dropout, padding,
    means over positions, depthwise convolutions, concatenation and reshaping, to the convolutions and Linears that read
    them. Layers of which a unit meets others (in an addition, say), is the network's output or goes to anything else
    are in ``skipped``, as are those whose weight is shared, computed or used twice.

    Args:
        model: the network.
        include: only layers of these names (with all inside them), name patterns or types.
        exclude: no layers of these names, patterns or types.
        example_inputs: arguments of forward; torch.export needs them, and they give the shapes for reshaping.
    """
    modules = dict(named_modules(model))
    tied = _tied_weights(modules)
    candidates, skipped = _candidates(modules, tied, ModuleChoice(include, exclude))
    try:
        traced = trace(model, example_inputs)
    except NotTracedError as error:
        skipped |= dict.fromkeys(candidates, "the model could not be traced")
        return UnitGraph({}, skipped, "not traced", error.reasons)
    shapes: dict[fx.Node, tuple[int, ...]] = {}
    errors: list[str] = []
    if example_inputs is not None:
        try:
            shapes = shapes_of(model, traced, example_inputs)
        except Exception as error:  # of the user's forward
            errors = [f"no shapes from example_inputs: {error}"]
    layers: dict[str, UnitLayer] = {}
    flows = UnitFlows(traced, modules, shapes, tied | _read_in_forward(traced, modules))
    for name, module in candidates.items():
        found = _unit_layer_or_reason(name, module, flows)
        if isinstance(found, UnitLayer):
            layers[name] = found
        else:
            skipped[name] = found
    return UnitGraph(layers, {name: skipped[name] for name in modules if name in skipped}, traced.source, errors)


def _candidates(
    modules: Mapping[str, nn.Module], tied: Mapping[str, str], choice: ModuleChoice
) -> tuple[dict[str, Layer], dict[str, str]]:
    """Layers that can take part by themselves, and why others cannot."""
    candidates: dict[str, Layer] = {}
    skipped: dict[str, str] = {}
    for name, module in modules.items():
        if isinstance(module, (_ConvNd, nn.Linear)):
            reason = choice.left_out(module, name) or reason_without_weight(name, module)
            if reason is None and name in tied:
                reason = f"its weight is {tied[name]}"
            if reason is None:
                candidates[name] = module
            else:
                skipped[name] = reason
        elif not isinstance(module, ParametrizationList) and _has_matrix(module):
            skipped[name] = f"{type(module).__name__} is neither a convolution nor a Linear"
    return candidates, skipped


def _has_matrix(module: nn.Module) -> bool:
    return any(p is not None and not is_lazy(p) and p.dim() > 1 for p in module._parameters.values())


def _unit_layer_or_reason(name: str, module: Layer, flows: UnitFlows) -> UnitLayer | str:
    try:
        return _unit_layer(name, module, flows)
    except NotUnderstoodError as error:
        return str(error)


def _unit_layer(name: str, module: Layer, flows: UnitFlows) -> UnitLayer:
    if name in flows.tied:
        raise NotUnderstoodError(f"its weight is {flows.tied[name]}")
    if (called := flows.called[name]) != 1:
        raise NotUnderstoodError(f"called {called} times" if called else "not called in the traced graph")
    node = flows.calls[name]
    flow = flows.follow(node)
    norm = flows.norm_behind(node)
    if norm is not None and flows.called[norm] > 1:
        raise NotUnderstoodError(f"{norm} behind it is called {flows.called[norm]} times")
    if norm is not None and norm in flows.tied:
        raise NotUnderstoodError(f"{norm} behind it has a weight {flows.tied[norm]}")
    places = _activation_places(flow, flows)
    norm_module = None if norm is None else flows.modules[norm]
    return UnitLayer(name, module, norm, norm_module, places, tuple(flow.outgoing.values()), tuple(flow.depthwise))


def _activation_places(flow: Flow, flows: UnitFlows) -> tuple[ActivationPlace, ...]:
    """Behind the first nonlinearity on each way: at its module, else where the first module behind it is given it."""
    places: dict[tuple[str, bool], ActivationPlace] = {}
    for node in sorted(flow.nonlinear, key=flows.order.__getitem__):
        if any(source in flow.nonlinear for source in node.all_input_nodes):
            continue
        place = _place(node, True, flow, flows) if _hooked(node, flows) else _first_given(node, flow, flows)
        if place is not None:
            places[place.name, place.is_output] = place
    for reader, source in flow.read.items():
        if source not in flow.nonlinear:
            place = _place(reader, False, flow, flows)
            places[place.name, place.is_output] = place
    return tuple(places.values())


def _first_given(node: fx.Node, flow: Flow, flows: UnitFlows) -> ActivationPlace | None:
    """The nearest module that is given a value behind this node; None where nothing reads it."""
    pending = [node]
    for value in pending:
        users = sorted(value.users, key=flows.order.__getitem__)
        for user in users:
            if user in flow.read or (user in flow.spans and _hooked(user, flows)):
                return _place(user, False, flow, flows)
        pending += [user for user in users if user in flow.spans]
    return None


def _hooked(node: fx.Node, flows: UnitFlows) -> bool:
    """Whether hooks on the node's module see exactly this call."""
    return node in flows.names and flows.called[flows.names[node]] == 1


def _place(node: fx.Node, is_output: bool, flow: Flow, flows: UnitFlows) -> ActivationPlace:
    name = flows.names[node]
    seen = node if is_output else next(source for source in node.all_input_nodes if source in flow.spans)
    return ActivationPlace(name, flows.modules[name], is_output, flow.spans[seen])


def _tied_weights(modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Layer name -> how its weight is shared with that of another module."""
    owners: dict[int, list[str]] = {}
    for name, module in modules.items():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(name)
    tied: dict[str, str] = {}
    for names in owners.values():
        for name in names if len(names) > 1 else ():
            tied[name] = f"shared with that of {next((other for other in names if other != name), name)}"
    return tied


def _read_in_forward(traced: Trace, modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """Layer name -> which node reads its parameter beside the layer's own call."""
    found: dict[str, str] = {}
    for node in traced.graph.nodes:
        if node.op == "get_attr":
            owner = str(node.target).rpartition(".")[0]
            if isinstance(modules.get(owner), (_ConvNd, nn.Linear)):
                found[owner] = f"read by {next(iter(node.users), node).name}, too"
    return found
