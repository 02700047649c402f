"""What each method would do about a network, without doing it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from we_kernels import NonFiniteWeightError

from ..evolution import WeightEvolution
from ..low_rank import LowRankProjection
from ..model.module_filters import ModuleChoice
from ..model.wrappers import named_parameters
from ..reactivation.options import ReactivationOptions
from .layer import ENERGIES, LayerHealth
from .totals import totals


@dataclass(frozen=True)
class Preview:
    """Of one method."""

    method: str
    """The class."""
    sentence: str
    """What it would do, or why it cannot be said."""
    numbers: Mapping[str, float]
    """The same as numbers; empty where it cannot be said."""


def preview_evolution(model: nn.Module, choice: ModuleChoice) -> Preview:
    """A step at the published base rates, without a schedule and starvation rule."""
    method = "WeightEvolution"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # how little of the model takes part: the report says it
            evolution = WeightEvolution(
                model,
                schedule=_constant,
                starvation_divisor=None,
                measure_after=False,
                **choice._asdict(),
            )
            report = evolution.preview(epoch=0)
            replaced = report.inferior
    except (TypeError, ValueError, NonFiniteWeightError) as error:
        return Preview(method, f"cannot step: {error}", {})
    convs = [name for name, kind in report.kinds.items() if kind == "conv"]
    others = [name for name, kind in report.kinds.items() if kind != "conv"]
    numbers = {
        "filters": sum(report.filters[name] for name in convs),
        "filters_replaced": sum(replaced[name] for name in convs),
        "norm_elements": sum(report.filters[name] for name in others),
        "norm_elements_replaced": sum(replaced[name] for name in others),
    }
    return Preview(
        method,
        "a step at the published rates would replace {filters_replaced} of {filters} filters and "
        "{norm_elements_replaced} of {norm_elements} scales and shifts".format(**numbers),
        numbers,
    )


def preview_reactivation(layers: Mapping[str, LayerHealth], reason: str) -> Preview:
    """A step at the default threshold. ``reason``: why activity was not measured."""
    method = "UnitReactivation"
    found = totals(layers)
    if "units" not in found:
        return Preview(method, f"cannot be said: {reason}", {})
    numbers = {"units": found["units"], "units_revived": found[f"dormant_{ReactivationOptions.threshold:g}"]}
    return Preview(method, "a step would let {units_revived} of {units} units start anew".format(**numbers), numbers)


def preview_low_rank(
    model: nn.Module,
    layers: Mapping[str, LayerHealth],
    input_size: Sequence[int] | None,
    example_inputs: tuple[Tensor, ...] | None,
    choice: ModuleChoice,
) -> Preview:
    """The compact network whose layers keep 90% of their energy: parameters, with inputs also multiply-accumulates."""
    method, energy = "LowRankProjection", ENERGIES[0]
    measured = {name: layer.spectrum.ranks[energy] for name, layer in layers.items() if layer.spectrum is not None}
    try:
        fit = _projection(model, None, None, choice).layers
        ranks = {name: max(measured[name], 1) for name in fit if name in measured}
        projection = _projection(model, ranks, example_inputs, choice)
        numbers = {"energy": energy}
        if input_size is None and example_inputs is None:
            numbers["parameters_share"] = _parameters_share(model, layers, projection.ranks)
        else:
            costs = projection.report(input_size)
            numbers |= {"parameters_share": costs.parameters_share, "macs_share": costs.macs_share}
    except (TypeError, ValueError, NonFiniteWeightError) as error:
        return Preview(method, f"cannot be said: {error}", {})
    macs = " and {macs_share:.0%} of the multiply-accumulates" if "macs_share" in numbers else ""
    sentence = "at {energy:.0%} of each layer's energy the compact network has {parameters_share:.0%} of the parameters"
    return Preview(method, (sentence + macs).format(**numbers), numbers)


def _projection(
    model: nn.Module,
    ranks: Mapping[str, int] | None,
    example_inputs: tuple[Tensor, ...] | None,
    choice: ModuleChoice,
) -> LowRankProjection:
    return LowRankProjection(
        model,
        ranks=ranks,
        linear=True,
        rectify_batch_norm=False,
        example_inputs=example_inputs,
        **choice._asdict(),
    )


def _parameters_share(model: nn.Module, layers: Mapping[str, LayerHealth], ranks: Mapping[str, int]) -> float:
    """Of the compact network, where two layers stand for one wherever they are smaller."""
    total = sum(parameter.numel() for _, parameter in named_parameters(model))
    saved = 0
    for name, rank in ranks.items():
        rows, weights = layers[name].filters, layers[name].weights
        saved += max(weights - rank * (rows + weights // rows), 0)
    return 1 - saved / total


def _constant(base_rate: float, epoch: int) -> float:
    return base_rate
