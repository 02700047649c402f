"""Which layers of a model can be projected onto a lower rank and replaced by two smaller ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from we_kernels import FilterBank

from ..model.module_filters import ModuleChoice
from ..model.own_forward import computes_otherwise
from ..model.weights import check_weight, reason_without_layers
from ..model.wrappers import joined, named_modules, unwrap
from ..sharding.local_part import is_distributed, local_part, reshard
from ..tables import in_short

Plain = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear
"""What can be replaced by two layers of its kind."""

FROZEN = "frozen (requires_grad is False)"

# Their forward reads the weights of these children instead of calling them.
_READS_WEIGHTS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


@dataclass(frozen=True)
class Layer:
    """A conv or Linear, seen as a matrix [rows, columns] = [out, in * kernel]."""

    name: str
    module: Plain
    shape: torch.Size = field(init=False)
    """The weight's, when the layer was found: a weight that was parametrized since is computed each time it is read,
    and that may change the model (the vectors of spectral_norm)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", self.module.weight.shape)

    @property
    def weight(self) -> Tensor:
        """The module's weight as it is now."""
        return self.module.weight

    @property
    def rows(self) -> int:
        """Output channels or features."""
        return self.shape[0]

    @property
    def columns(self) -> int:
        """Input channels times kernel size, or input features."""
        return self.shape[1:].numel()

    @property
    def full_rank(self) -> int:
        """The smaller side of the matrix."""
        return min(self.rows, self.columns)

    @property
    def cost(self) -> int:
        """Multiply-accumulates per output position, which is also the number of weights."""
        return self.rows * self.columns

    @property
    def cost_of_rank(self) -> int:
        """What each rank of the factorised layer costs, in the same unit."""
        return self.rows + self.columns

    def saves(self, rank: int) -> bool:
        """Whether two layers of this rank cost less than the original."""
        return rank * self.cost_of_rank < self.cost


class Layers:
    """The layers of a model that take part, in module order. Models change, so each call looks at them anew."""

    def __init__(self, model: nn.Module, choice: ModuleChoice, *, linear: bool) -> None:
        self.items, self.unfit = find_layers(model, choice, linear=linear)
        self._model, self._choice, self._linear = unwrap(model), choice, linear
        self.distributed = any(map(is_distributed, model.parameters()))
        """Whether a parameter of the model is a DTensor."""
        _check_weights(self.items)
        self._shapes = {layer.name: layer.shape for layer in self.items}
        self.frozen: set[str] = set()
        """Names of layers that were frozen since, at the last look."""

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def look(self) -> None:
        """Follow what was replaced by its like, and what was frozen since.

        Raises:
            TypeError, ValueError: a layer is gone, has another shape or cannot be projected any more, or one can be
                that could not before.
        """
        reshard(self._model)
        modules = dict(named_modules(self._model))
        fit, unfit = _sort(modules, self._choice, self._linear)
        now = {layer.name: layer for layer in fit}
        frozen = {name for name in self._shapes if unfit.get(name) == FROZEN}
        for name, shape in self._shapes.items():
            if name in frozen:
                now[name] = Layer(name, cast(Plain, modules[name]))
            if name not in modules:
                raise changed(name, "it is gone")
            if name not in now:
                raise changed(name, unfit.get(name, f"it is a {type(modules[name]).__name__} now"))
            if now[name].shape != shape:
                raise changed(name, f"its weight has shape {tuple(now[name].shape)}, had {tuple(shape)}")
            if not self.distributed and is_distributed(now[name].weight):
                raise changed(name, "it became a DTensor, and the model is to be sharded (fully_shard) first")
        for name in now:
            if name not in self._shapes:
                raise changed(name, f"it can be projected now; before: {self.unfit.get(name, 'it was not there')}")
        items = [now[name] for name in self._shapes]
        _check_weights(items)
        self.items, self.frozen = items, frozen


def one_device(layers: Sequence[Layer]) -> torch.device:
    """The device of all layers; raises ValueError if there are several."""
    devices = {layer.weight.device: layer.name for layer in layers}
    if len(devices) > 1:
        where = ", ".join(f"{name} on {device}" for device, name in devices.items())
        raise ValueError(f"all layers must be on one device, got {where}; use one LowRankProjection per device")
    return next(iter(devices))


def _check_weights(layers: Sequence[Layer]) -> None:
    """Raises what a projection would, by the layers' names: it comes after an epoch."""
    one_device(layers)
    names = [joined(layer.name, "weight") for layer in layers]
    with torch.no_grad():
        FilterBank([local_part(layer.weight.detach()) for layer in layers], names=names).check()


def changed(name: str, what: str) -> ValueError:
    """The error for a part of the model that is not any more what the projection was made for."""
    return ValueError(f"{name} has changed since LowRankProjection was made: {what}. Undo that or make a new one")


def find_layers(model: nn.Module, choice: ModuleChoice, *, linear: bool) -> tuple[list[Layer], dict[str, str]]:
    """The layers in module order, and the names of the convs (and Linears) left out with the reason.

    Raises:
        TypeError: ``model`` is not a module, or a weight is not initialized yet.
        ValueError: an entry of ``include`` or ``exclude`` matches no module, a weight is only a part of it, or no layer
            is left.
    """
    modules = choice.modules_of(model)
    reshard(model)
    layers, skipped = _sort(modules, choice, linear)
    if not layers:
        reason = f"left out: {in_short(skipped)}" if skipped else reason_without_layers(model)
        linears = "" if linear else " (Linear layers take part with linear=True)"
        raise ValueError(f"model has no layer to project; {reason}{linears}")
    return layers, skipped


def _sort(modules: Mapping[str, nn.Module], choice: ModuleChoice, linear: bool) -> tuple[list[Layer], dict[str, str]]:
    holders: dict[int, list[str]] = defaultdict(list)
    for name, module in modules.items():
        for parameter in module.parameters(recurse=False):
            holders[id(parameter)].append(name)
    read_by = {
        id(unwrap(child)): name
        for name, module in modules.items()
        if isinstance(module, _READS_WEIGHTS)
        for child in module.children()
    }
    layers: list[Layer] = []
    skipped: dict[str, str] = {}
    for name, module in modules.items():
        if not isinstance(module, (_ConvNd, nn.Linear) if linear else _ConvNd):
            continue
        if (reason := choice.left_out(module, name)) or (reason := _unfit(name, module)):
            skipped[name] = reason
        elif parent := read_by.get(id(module)):
            skipped[name] = f"{parent} reads its weight directly"
        elif len(names := holders[id(module.weight)]) > 1:
            skipped[name] = f"shares its weight with {', '.join(other for other in names if other != name)}"
        elif not module.weight.requires_grad:
            skipped[name] = FROZEN
        else:
            assert isinstance(module, Plain)
            layers.append(Layer(name, module))
    return layers, skipped


def _unfit(name: str, module: _ConvNd | nn.Linear) -> str | None:
    weight = module._parameters.get("weight")
    if weight is None:
        return "its weight is computed from other parameters (parametrize, weight_norm or prune)"
    if is_lazy(weight):
        raise TypeError(f"{name}.weight is not initialized yet; run one forward pass before making LowRankProjection")
    if not isinstance(module, Plain):
        return "a transposed convolution"
    if isinstance(module, _ConvNd) and module.groups != 1:
        return f"{module.groups} groups"
    if not weight.is_floating_point():
        return f"its weight is {weight.dtype}"
    check_weight(joined(name, "weight"), module, weight)
    if weight.numel() == 0:
        return "its weight is empty"
    if {"forward", "_conv_forward"} & vars(module).keys():
        return f"{type(module).__name__} has a forward of its own, set on the module"
    return computes_otherwise(module)
