"""Shapes of what forward computes, without computing it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

from .copies import as_fake, copy_without_values
from .example_inputs import inputs_beside
from .tracing import Trace, has_global_hooks, restored


def shapes_of(model: nn.Module, traced: Trace, example_inputs: tuple[Tensor, ...]) -> dict[fx.Node, tuple[int, ...]]:
    """The shape of every node's tensor; other nodes are left out.

    The model and the random states are as before; hooks are not called.

    Raises:
        Exception: anything that forward raises on such inputs.
    """
    if traced.source == "torch.export":
        values = {node: node.meta.get("val") for node in traced.graph.nodes}
        return {node: tuple(value.shape) for node, value in values.items() if isinstance(value, Tensor)}
    from torch._subclasses.fake_tensor import FakeTensorMode  # takes a second to import

    if has_global_hooks():
        raise RuntimeError("not tried, as it would call the global hooks of nn.Module")
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with restored(), torch.no_grad():
        copied = copy_without_values(model, partial(as_fake, fake)).eval()
        inputs = tree_map_only(Tensor, fake.from_tensor, inputs_beside(model, example_inputs))
        interpreter = _Shapes(copied, traced.graph)
        with fake:
            interpreter.run(*inputs)
    return interpreter.shapes


class _Shapes(fx.Interpreter):
    def __init__(self, module: nn.Module, graph: fx.Graph) -> None:
        super().__init__(module, graph=graph)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n] = tuple(value.shape)
        return value
