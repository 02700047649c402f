"""Where the output of a layer's units goes, node by node, until other layers read it."""

from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.padding import _ConstantPadNd, _ReflectionPadNd, _ReplicationPadNd

from ..sharding.local_part import plain_class
from . import node_kinds as kinds
from .tracing import Trace
from .unit_span import NEEDS_SHAPES, NotUnderstoodError, UnitSpan
from .unit_weights import (
    OutgoingWeights,
    input_count,
    is_depthwise,
    reason_without_weight,
    unit_axis,
    unit_count,
)


@dataclass
class Flow:
    """What was found on the ways from one layer."""

    spans: dict[fx.Node, UnitSpan]
    """Of each node that the units reach, where they are in its value."""
    nonlinear: set[fx.Node] = field(default_factory=set)
    """Those of which the value is behind a nonlinearity."""
    outgoing: dict[fx.Node, OutgoingWeights] = field(default_factory=dict)
    """By the node of the layer that reads."""
    read: dict[fx.Node, fx.Node] = field(default_factory=dict)
    """Of each node in `outgoing`, what it reads."""
    depthwise: list[OutgoingWeights] = field(default_factory=list)
    """Where the units are in the input of the depthwise convolutions that they pass through."""


class UnitFlows:
    """Follows units through one traced model.

    Args:
        traced: the graph.
        modules: by name.
        shapes: of the nodes, as far as known.
        tied: names of layers whose weight is read elsewhere, too.
    """

    def __init__(
        self,
        traced: Trace,
        modules: Mapping[str, nn.Module],
        shapes: Mapping[fx.Node, tuple[int, ...]],
        tied: Mapping[str, str],
    ) -> None:
        self.names, self.modules, self.shapes, self.tied = traced.calls, modules, shapes, tied
        self.order = {node: place for place, node in enumerate(traced.graph.nodes)}
        self.called = Counter(traced.calls.values())
        self.calls = {name: node for node, name in traced.calls.items()}

    def follow(self, layer: fx.Node) -> Flow:
        """All ways from the one call of a convolution or Linear.

        Raises:
            NotUnderstoodError: a unit meets others, or something that is not understood; says what.
        """
        module = self.module(layer)
        assert isinstance(module, (_ConvNd, nn.Linear))
        axis, units = unit_axis(module), unit_count(module)
        dims = len(module.kernel_size) + 2 if isinstance(module, _ConvNd) else None
        flow = Flow({layer: UnitSpan(axis, 0, 1, units, len(self.shapes[layer]) if layer in self.shapes else dims)})
        pending = [(self.order[user], user) for user in layer.users]
        heapq.heapify(pending)
        seen: set[fx.Node] = set()
        while pending:
            _, node = heapq.heappop(pending)
            if node in seen or kinds.only_asks(node):
                continue
            seen.add(node)
            if self._pass(node, flow):
                for user in node.users:
                    heapq.heappush(pending, (self.order[user], user))
        if not flow.outgoing:
            raise NotUnderstoodError("nothing reads its output")
        return flow

    def module(self, node: fx.Node) -> nn.Module | None:
        """What a node calls, if it calls a module."""
        name = self.names.get(node)
        return None if name is None else self.modules[name]

    def norm_behind(self, layer: fx.Node) -> str | None:
        """The BatchNorm that is the only reader of a layer's output."""
        node = layer
        while len(node.users) == 1:
            node = next(iter(node.users))
            module = self.module(node)
            if isinstance(module, _BatchNorm):
                return self.names[node]
            if not isinstance(module, nn.Identity):
                return None
        return None

    def _pass(self, node: fx.Node, flow: Flow) -> bool:
        """Note where the units are in a node's value; whether they are in it at all."""
        if node.op == "output":
            raise NotUnderstoodError("it is the network's output")
        reached = [source for source in node.all_input_nodes if source in flow.spans]
        if len(reached) > 1:
            raise NotUnderstoodError(f"it meets itself in {self._describe(node)}")
        source, module = reached[0], self.module(node)
        span = flow.spans[source]
        if module is None:
            after, nonlinear = self._through_function(node, source, span)
        elif _first_argument(node) is not source:
            raise NotUnderstoodError(f"it goes to {self._describe(node)} as another argument than the first")
        elif isinstance(module, (_ConvNd, nn.Linear)) and not is_depthwise(module):
            self._read(node, module, flow.spans[source], flow)
            flow.read[node] = source
            return False
        else:
            after, nonlinear = self._through_module(node, module, span)
            if isinstance(module, _ConvNd):
                flow.depthwise.append(OutgoingWeights(self.names[node], module, span.offset, span.block))
        flow.spans[node] = after
        if nonlinear or source in flow.nonlinear:
            flow.nonlinear.add(node)
        return True

    def _read(self, node: fx.Node, layer: _ConvNd | nn.Linear, span: UnitSpan, flow: Flow) -> None:
        name = self.names[node]
        if self.called[name] > 1:
            raise NotUnderstoodError(f"it goes to {name}, which is called {self.called[name]} times")
        if name in self.tied:
            raise NotUnderstoodError(f"it goes to {name}, whose weight is {self.tied[name]}")
        if (reason := reason_without_weight(name, layer)) is not None:
            raise NotUnderstoodError(f"it goes to {name}: {reason}")
        span = span.at(unit_axis(layer), name).closed(input_count(layer), name)
        flow.outgoing[node] = OutgoingWeights(name, layer, span.offset, span.block)

    def _through_module(self, node: fx.Node, module: nn.Module, span: UnitSpan) -> tuple[UnitSpan, bool]:
        """Where the units are behind a module, and whether it is a nonlinearity."""
        name, kind = self.names[node], plain_class(module)
        if isinstance(module, _ConvNd):
            if (reason := reason_without_weight(name, module)) is not None:
                raise NotUnderstoodError(f"it goes to {name}: {reason}")
            span = span.at(unit_axis(module), name).closed(module.in_channels, name)
            return span.times(module.out_channels // module.groups), False
        if not kind.__module__.startswith("torch.nn.modules"):
            raise NotUnderstoodError(f"it goes to {self._describe(node)}, which is not understood")
        if kind in kinds.UNCHANGED_MODULES:
            return span, False
        if isinstance(module, nn.PReLU) and module.num_parameters != 1:
            return self._per_channel(span, module.num_parameters, name), True
        if kind in kinds.NONLINEAR_MODULES:
            return span, True
        if isinstance(module, _BatchNorm):
            return self._per_channel(span, module.num_features, name), False
        if isinstance(module, _InstanceNorm):
            return self._per_channel(span.at(-1 - _dims_of(kind), name), module.num_features, name), False
        if kind in kinds.POOL_MODULES:
            return span.at(-1 - kinds.POOL_MODULES[kind], name), False
        if isinstance(module, (_ConstantPadNd, _ReflectionPadNd, _ReplicationPadNd)):
            return self._padded(span, module.padding, name), False
        if isinstance(module, nn.Flatten):
            return self._reshaped(node, span, module.start_dim, module.end_dim), False
        if kind is nn.Unflatten:
            return self._by_shapes(node, span), False
        raise NotUnderstoodError(f"it goes to {self._describe(node)}, which is not understood")

    def _through_function(self, node: fx.Node, source: fx.Node, span: UnitSpan) -> tuple[UnitSpan, bool]:
        """The same behind a function or method."""
        name, reader = kinds.function_name(node), self._describe(node)
        if name in kinds.CONCATENATIONS:
            return self._concatenated(node, source, span), False
        if name in kinds.ARITHMETIC and len(node.all_input_nodes) > 1:
            kind = "addition" if name in ("add", "iadd") else "product or difference"
            raise NotUnderstoodError(f"it meets others in the {kind} {node.name}")
        first = _first_argument(node)
        if name in ("view", "reshape") and first is source:
            return self._viewed(node, span), False
        if name in kinds.ARITHMETIC:  # with a number
            return span, False
        if first is not source or len(node.all_input_nodes) > 1:
            raise NotUnderstoodError(f"it meets others in {reader}, which is not understood")
        if name in kinds.NONLINEARITIES:
            return span, True
        if name in kinds.UNCHANGED:
            return span, False
        if name in kinds.POOLS and not _option(node, "return_indices", None, False):
            return span.at(-1 - kinds.POOLS[name], reader), False
        if name in kinds.REDUCTIONS:
            dims = _option(node, "dim", 1, ())
            dims = [dims] if isinstance(dims, int) else list(dims or ())
            return span.reduced(dims, bool(_option(node, "keepdim", 2, False)), reader), False
        if name in ("pad", "constant_pad_nd"):
            return self._padded(span, _option(node, "pad", 1, ()), reader), False
        if name == "flatten":
            return self._reshaped(node, span, _option(node, "start_dim", 1, 0), _option(node, "end_dim", 2, -1)), False
        if name in kinds.RESHAPES:
            return self._by_shapes(node, span), False
        raise NotUnderstoodError(f"it goes to {reader}, which is not understood")

    def _per_channel(self, span: UnitSpan, features: int, reader: str) -> UnitSpan:
        """Through what treats dimension 1 by channels."""
        if not (span.axis == -1 if span.dims is None else span.dims + span.axis == 1):
            raise NotUnderstoodError(f"it goes to {reader}, whose channels are not the units")
        return span.closed(features, reader)

    def _padded(self, span: UnitSpan, padding: object, reader: str) -> UnitSpan:
        if not isinstance(padding, Sequence) or len(padding) // 2 >= -span.axis:
            raise NotUnderstoodError(f"it goes to {reader}, which pads the units")
        return span

    def _reshaped(self, node: fx.Node, span: UnitSpan, start: int, end: int) -> UnitSpan:
        """Through a flattening."""
        if node in self.shapes:
            return self._by_shapes(node, span)
        return span.flattened(start, end, self._describe(node))

    def _viewed(self, node: fx.Node, span: UnitSpan) -> UnitSpan:
        """Through a view or reshape, of which ``x.view(x.size(0), -1)`` is understood without shapes."""
        size = node.args[1] if len(node.args) == 2 and isinstance(node.args[1], (tuple, list)) else node.args[1:]
        if isinstance(size, Sequence) and len(size) == 2 and size[1] == -1 and kinds.is_batch_size(size[0]):
            return self._reshaped(node, span, 1, -1)
        return self._by_shapes(node, span)

    def _by_shapes(self, node: fx.Node, span: UnitSpan) -> UnitSpan:
        source = node.all_input_nodes[0]
        if source not in self.shapes or node not in self.shapes:
            raise NotUnderstoodError(f"it goes to {self._describe(node)}, {NEEDS_SHAPES}")
        return span.reshaped(self.shapes[source], self.shapes[node], self._describe(node))

    def _concatenated(self, node: fx.Node, source: fx.Node, span: UnitSpan) -> UnitSpan:
        reader = self._describe(node)
        tensors = node.args[0] if node.args else node.kwargs.get("tensors")
        dim = _option(node, "dim", 1, _option(node, "axis", None, 0))
        if not isinstance(tensors, (list, tuple)) or not isinstance(dim, int) or not span.is_at(dim, reader):
            raise NotUnderstoodError(f"it meets others in {reader}, along another dimension than the units'")
        if list(tensors).count(source) != 1 or span.open:
            raise NotUnderstoodError(f"it goes to {reader}" + (f", {NEEDS_SHAPES}" if span.open else " twice"))
        sizes = [span.size if tensor is source else self._size(tensor, span.axis) for tensor in tensors]
        known = [size for size in sizes if size is not None]
        if len(known) < len(sizes):
            raise NotUnderstoodError(f"it goes to {reader}, {NEEDS_SHAPES}")
        offset = span.offset + sum(known[: list(tensors).index(source)])
        return UnitSpan(span.axis, offset, span.block, sum(known), span.dims)

    def _size(self, node: object, axis: int) -> int | None:
        """Of the value of a node along the dimension of channels, if it is known."""
        while isinstance(node, fx.Node):
            if node in self.shapes:
                return self.shapes[node][axis]
            module, name = self.module(node), kinds.function_name(node)
            if isinstance(module, (_ConvNd, nn.Linear)):
                return unit_count(module) if unit_axis(module) == axis else None
            if name in kinds.CONCATENATIONS and isinstance(node.args[0], (list, tuple)):
                sizes = [self._size(tensor, axis) for tensor in node.args[0]]
                known = [size for size in sizes if size is not None]
                return sum(known) if len(known) == len(sizes) else None
            kept = isinstance(module, (_BatchNorm, *kinds.NONLINEAR_MODULES, *kinds.UNCHANGED_MODULES))
            kept = kept or (module is not None and plain_class(module) in kinds.POOL_MODULES)
            if not (kept or name in kinds.NONLINEARITIES | kinds.UNCHANGED or name in kinds.POOLS):
                return None
            node = _first_argument(node)
        return None

    def _describe(self, node: fx.Node) -> str:
        name = self.names.get(node)
        return node.name if name is None else f"{name} ({plain_class(self.modules[name]).__name__})"


def _first_argument(node: fx.Node) -> object:
    """Of a call, given by place or, as ``conv(input=x)``, by name."""
    return next(iter([*node.args, *node.kwargs.values()]), None)


def _option(node: fx.Node, name: str, place: int | None, default: Any) -> Any:
    """An argument of a call by name or place."""
    if name in node.kwargs:
        return node.kwargs[name]
    return node.args[place] if place is not None and place < len(node.args) else default


def _dims_of(kind: type[nn.Module]) -> int:
    match = re.search(r"(\d)d$", kind.__name__)
    assert match is not None
    return int(match[1])
