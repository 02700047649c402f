"""Graphs of torch.export without regions: what is under autocast or no_grad is a graph of its own there."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx


def without_regions(module: fx.GraphModule) -> fx.Graph:
    """The graph of a module, with the nodes of its regions among its own, however deep they are nested."""
    graph = fx.Graph()
    graph.output(_add(module, graph, {}))
    return graph


def _add(module: fx.GraphModule, graph: fx.Graph, values: dict[fx.Node, Any]) -> Any:
    """What the module returns, in terms of the graph's nodes; ``values`` are those of its arguments."""
    for node in module.graph.nodes:
        if node in values:
            continue
        if node.op == "output":
            return fx.map_arg(node.args[0], values.__getitem__)
        source = values.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        if (region := _region(module, node)) is not None:
            inner, operands = region
            arguments = fx.map_arg(operands, values.__getitem__)
            placeholders = (each for each in inner.graph.nodes if each.op == "placeholder")
            values[node] = _add(inner, graph, dict(zip(placeholders, arguments, strict=True)))
        elif node.target is operator.getitem and isinstance(source, (tuple, list)):
            values[node] = source[node.args[1]]
        else:
            values[node] = graph.node_copy(node, values.__getitem__)
    return None


def _region(module: fx.GraphModule, node: fx.Node) -> tuple[fx.GraphModule, tuple[Any, ...]] | None:
    """The graph that a node calls, and its operands, which stand behind it in the node's arguments."""
    if not isinstance(node.target, torch._ops.HigherOrderOperator) or not node.target.name().startswith("wrap_with"):
        return None
    for i, argument in enumerate(node.args):
        if isinstance(argument, fx.Node) and argument.op == "get_attr":
            inner = module.get_submodule(str(argument.target))
            return (inner, node.args[i + 1 :]) if isinstance(inner, fx.GraphModule) else None
    return None
