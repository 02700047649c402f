"""Which BatchNorm follows which layer, read from the traced graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from ..tables import table
from .tracing import NotTracedError, trace
from .wrappers import named_modules


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
    layers: Mapping[str, nn.Module],
    *,
    given: Mapping[str, str | None] | None,
    example_inputs: tuple[Tensor, ...] | None,
) -> BatchNormPairs:
    """Pair each conv with its BatchNorm: as given by name, else from torch.fx, else from torch.export.

    torch.export needs ``example_inputs``. ``layers`` are convolutions and Linears by name. A Linear has a BatchNorm
    only by name: in the graph one cannot see whether BatchNorm1d normalizes the features or the positions.

    Raises:
        TypeError, ValueError: ``given`` names something that cannot be paired; says what.
    """
    given = _check_given(model, layers, given)
    convs = [name for name, module in layers.items() if name not in given and isinstance(module, _ConvNd)]
    reasons = {name: "given as None" for name, norm in given.items() if norm is None}
    reasons.update({name: "not a convolution" for name in layers if name not in given and name not in convs})
    errors: list[str] = []
    source, followers = "given", dict[str, list[_Follower]]()
    modules = dict(named_modules(model))
    if convs:
        try:
            traced = trace(model, example_inputs)
            source, followers = traced.source, _followers(traced.graph, traced.calls, modules)
        except NotTracedError as error:
            source, errors = "not traced", error.reasons
    names: dict[str, str | None] = {}
    for name in layers:
        names[name] = given.get(name)
        if name in given or name in reasons:
            continue
        if source == "not traced":
            reasons[name] = "the model could not be traced"
            continue
        norm, reason = _one_follower(followers.get(name, []))
        if norm is not None and modules[norm].running_var is None:
            norm, reason = None, f"{norm} keeps no running variance"
        names[name] = norm
        if norm is None:
            reasons[name] = reason
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


def _followers(
    graph: fx.Graph, calls: Mapping[fx.Node, str], modules: Mapping[str, nn.Module]
) -> dict[str, list[_Follower]]:
    """Of each convolution, for each of its calls."""
    called = {node: modules[name] for node, name in calls.items()}
    followers: dict[str, list[_Follower]] = defaultdict(list)
    for node in graph.nodes:
        if isinstance(called.get(node), _ConvNd):
            followers[calls[node]].append(_follower(node, calls, called))
    return followers


def _follower(node: fx.Node, calls: Mapping[fx.Node, str], called: Mapping[fx.Node, nn.Module]) -> _Follower:
    users = list(node.users)
    if len(users) != 1:
        return _Follower(None, f"its output goes to {len(users)} places")
    user = users[0]
    module = called.get(user)
    if isinstance(module, _BatchNorm):
        return _Follower(calls[user])
    if isinstance(module, nn.Identity):
        return _follower(user, calls, called)
    return _Follower(None, f"followed by {'the output' if user.op == 'output' else user.name}, not by a BatchNorm")


def _check_given(
    model: nn.Module, layers: Mapping[str, nn.Module], given: Mapping[str, str | None] | None
) -> dict[str, str | None]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise TypeError(
            f'batch_norm_pairs must be a dict {{"conv name": "batch norm name" or None}}, got {type(given).__name__}'
        )
    norms = {name: module for name, module in named_modules(model) if isinstance(module, _BatchNorm)}
    for name, norm in given.items():
        if name not in layers:
            raise ValueError(f"batch_norm_pairs: {name!r} is not a layer to project; those are {_list(layers)}")
        if norm is None:
            continue
        if norm not in norms:
            raise ValueError(f"batch_norm_pairs[{name!r}]: {norm!r} is not a BatchNorm; those are {_list(norms)}")
        if norms[norm].running_var is None:
            raise ValueError(f"batch_norm_pairs[{name!r}]: {norm!r} keeps no running variance; pass None instead")
        outputs = _outputs(layers[name])
        if norms[norm].num_features != outputs:
            raise ValueError(
                f"batch_norm_pairs[{name!r}]: {norm!r} has {norms[norm].num_features} features, the layer {outputs} "
                "outputs"
            )
    return dict(given)


def _outputs(layer: nn.Module) -> int:
    assert isinstance(layer, (_ConvNd, nn.Linear))
    return layer.out_channels if isinstance(layer, _ConvNd) else layer.out_features


def _list(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"
