"""What the graph of a model says about its layers: which compute its output, which convolution a BatchNorm follows."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from .tracing import Trace

_MIXING = {
    *("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
    *("matmul", "mm", "bmm", "baddbmm", "einsum", "scaled_dot_product_attention"),
    *("batch_norm", "layer_norm", "group_norm", "instance_norm"),
}
"""Functions that do what layers with weights do."""


def output_layers(traced: Trace, modules: Mapping[str, nn.Module]) -> set[str]:
    """Names of convolutions and Linears whose channels are the network's output.

    From there to the output are only operations without weights: activations, pooling, reshaping, sums with others, but
    no BatchNorm.
    """
    found: set[str] = set()
    seen: set[fx.Node] = set()
    pending = [node for node in traced.graph.nodes if node.op == "output"]
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        name = traced.calls.get(node)
        module = None if name is None else modules.get(name)
        if name is not None and isinstance(module, (_ConvNd, nn.Linear)):
            found.add(name)
        elif not _mixes(node, module):
            pending += node.all_input_nodes
    return found


def convolutions_before(traced: Trace, modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """BatchNorm name -> name of the convolution whose output it normalizes; others are not listed."""
    pairs: dict[str, set[str | None]] = {}
    for node, name in traced.calls.items():
        if isinstance(modules.get(name), _BatchNorm):
            sources = {traced.calls.get(source) for source in node.all_input_nodes if source.op == "call_module"}
            pairs.setdefault(name, set()).update(sources or {None})
    return {
        norm: source
        for norm, (source, *others) in pairs.items()
        if not others and source is not None and isinstance(modules.get(source), _ConvNd)
    }


def _mixes(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether its result is no longer the channels of a layer before it, or not as they were."""
    if module is not None:
        return isinstance(module, _BatchNorm) or next(module.parameters(), None) is not None
    if node.op not in ("call_function", "call_method"):
        return False
    return getattr(node.target, "__name__", node.target) in _MIXING
