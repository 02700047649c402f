"""Which weights are masked, along which dimension, and how large a share of them moves."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..model.module_filters import ModuleChoice
from ..model.targets import Target, Targets, own_parameter
from ..model.weights import check_weight, reason_without_layers
from ..model.wrappers import joined
from ..sharding.local_part import reshard
from ..tables import in_short

SELECTS = ("filters", "input_channels")


@dataclass(frozen=True)
class FilterTarget(Target):
    """A convolution's weight, masked by filters."""

    needs_whole_filters: ClassVar[bool] = False

    @property
    def filters(self) -> tuple[Tensor, int]:
        """The weight, or a view of it, and the dimension along which its filters lie.

        Raises:
            ValueError: it is not the whole weight of its convolution.
        """
        weight = self.parameter
        check_weight(self.name, self.module, weight)
        if weight.dim() < 2:  # of a weight given alone there is no module to ask
            raise ValueError(f"{self.name} must be [N, C, *kernel], a whole weight, got shape {tuple(weight.shape)}")
        return super().filters


@dataclass(frozen=True)
class ChannelTarget(FilterTarget):
    """A convolution's weight, masked by input channels, which all filters share."""

    def view_of(self, tensor: Tensor) -> tuple[Tensor, int]:
        """The tensor, and the dimension along which its input channels lie."""
        return tensor, 0 if getattr(self.module, "transposed", False) else 1


def listed_convolutions(weights: Iterable[Tensor], select: str, parameters: Iterable[Tensor]) -> Targets:
    """Weights given one by one, [N, C, *kernel] each; a weight given twice is taken once.

    Raises:
        TypeError, ValueError: one is no parameter of the optimizer, or there are none.
    """
    holder = nn.Module()
    optimized = set(map(id, parameters))
    make = FilterTarget if select == "filters" else ChannelTarget
    items: list[Target] = []
    for i, weight in enumerate({id(weight): weight for weight in weights}.values()):
        if not isinstance(weight, nn.Parameter) or id(weight) not in optimized:
            raise ValueError(f"conv_weights[{i}] is not among the optimizer's parameters")
        holder.register_parameter(f"weight{i}", weight)
        items.append(make(f"conv_weights[{i}]", "conv", holder, f"weight{i}"))
    if not items:
        raise ValueError("conv_weights is empty")
    return Targets(items, {})


def find_convolutions(
    model: nn.Module,
    select: str,
    choice: ModuleChoice,
    parameters: Iterable[Tensor],
) -> Targets:
    """Weights of the model's convolutions that are among ``parameters`` (the optimizer's), in module order.

    Frozen ones, too: they may be thawed later. Names are as if there were no wrappers (torch.compile, DataParallel,
    activation checkpointing).

    Raises:
        TypeError: ``model`` is not a module, or a weight cannot take part (parametrized, lazy).
        ValueError: an entry of ``include`` or ``exclude`` matches no module, or no convolution is left.
    """
    modules = choice.modules_of(model)
    reshard(model)
    make = FilterTarget if select == "filters" else ChannelTarget
    optimized = set(map(id, parameters))
    items: list[Target] = []
    skipped: dict[str, str] = {}
    seen: set[int] = set()
    for name, module in modules.items():
        if not isinstance(module, _ConvNd):
            continue
        full_name = joined(name, "weight")
        if reason := choice.left_out(module, name):
            skipped[full_name] = reason
        elif id(parameter := own_parameter(module, "weight", full_name)) in seen:
            skipped[full_name] = "shared with a parameter listed before"
        elif id(parameter) not in optimized:
            skipped[full_name] = "not among the optimizer's parameters"
        else:
            seen.add(id(parameter))
            items.append(make(full_name, "conv", module, "weight"))
    if not items:
        raise ValueError(
            "the optimizer has no convolution of the model to update"
            + (f"; left out: {in_short(skipped)}" if skipped else f": {reason_without_layers(model)}")
        )
    return Targets(items, skipped)


def expected_share(size: int, rate: float, replacement: bool) -> float:
    """The share of a layer's ``size`` filters (or channels) that moves in an iteration, on average."""
    if size == 0:
        return 1.0
    if not replacement:
        return max(1, round(rate * size)) / size
    draws = max(1, math.floor(rate * size))
    return float(-math.expm1(draws * math.log1p(-1 / size))) if size > 1 else 1.0
