"""`filter_health`: the state of the filters of a network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from ..arguments import check_flag, check_inputs
from ..measures import DormancyReport
from ..measures.dormancy_report import THRESHOLDS as DORMANT
from ..model.convolutions import measured_weight
from ..model.module_filters import ModuleChoice, ModuleFilter
from ..model.weights import HAS_NONE, reason_without_layers
from ..model.wrappers import joined, named_modules, named_parameters
from ..sharding.local_part import refuse_distributed
from ..tables import in_short
from .activity import Batch, measure_activity
from .advice import advice
from .layer import Activity, LayerHealth, layer_health
from .previews import preview_evolution, preview_low_rank, preview_reactivation
from .report import HealthReport

NO_BATCHES = "no batches were given"


@torch.no_grad()
def filter_health(
    model: nn.Module,
    batches: Iterable[Batch] | None = None,
    *,
    input_size: Sequence[int] | None = None,
    example_inputs: Tensor | tuple[Tensor, ...] | None = None,
    full: bool = False,
    include: Sequence[ModuleFilter] | None = None,
    exclude: Sequence[ModuleFilter] = (),
) -> HealthReport:
    """Filters near zero, dormant, alike or of needless rank, for every convolution and Linear; what would treat them.

    Waits for the device. Each weight is measured once, where several layers share it.

    Args:
        model: any network; only read. Wrappers are seen through; random numbers may be drawn by its forward.
        batches: run through the model in eval mode, without gradients, to see which units fire: a list or data loader
            of tensors, of sequences that begin with the inputs, or of dicts of forward's arguments. All are used.
        input_size: of one input, such as (3, 224, 224), to count the multiply-accumulates of a compact network.
        example_inputs: arguments of forward, a tensor or a tuple, for the same, and for models that torch.fx cannot
            trace. The first batch, where batches are given.
        full: measure cosines and ranks of layers of more than 2,048 filters and elements, too, which takes minutes.
        include: only modules of these names (with all inside them), name patterns (``*``) or types.
        exclude: no modules of these names, patterns or types.

    Raises:
        TypeError, ValueError: name the argument and say what to do; ValueError, too, if the model has no such layer.
    """
    choice = ModuleChoice(include, exclude)
    choice.modules_of(model)
    refuse_distributed(model, "filter_health")
    check_flag(full, "full")
    inputs = check_inputs(example_inputs)
    layers, skipped = _measure(model, full, choice)
    if not layers:
        raise ValueError(f"model has no layer to measure: {_why_none(model, skipped)}")
    found = NO_BATCHES if batches is None else measure_activity(model, batches, inputs, choice)
    reason, without = (found, {}) if isinstance(found, str) else ("", found.skipped)
    if isinstance(found, DormancyReport):
        layers = _with_activity(layers, found)
    previews = [
        preview_evolution(model, choice),
        preview_reactivation(layers, reason),
        preview_low_rank(model, layers, input_size, inputs, choice),
    ]
    by_method = {preview.method: preview for preview in previews}
    return HealthReport(
        layers=layers,
        skipped=skipped,
        without_activity=dict(without),
        previews=by_method,
        advice=advice(layers, by_method, reason),
        parameters=sum(parameter.numel() for _, parameter in named_parameters(model) if not is_lazy(parameter)),
    )


def _measure(model: nn.Module, full: bool, choice: ModuleChoice) -> tuple[dict[str, LayerHealth], dict[str, str]]:
    """The layers, and why others, and matrices that are no layer's weight, were left out."""
    layers: dict[str, LayerHealth] = {}
    skipped: dict[str, str] = {}
    seen: dict[int, str] = {}
    for name, module in named_modules(model):
        if not isinstance(module, (_ConvNd, nn.Linear)):
            for attribute, parameter in module._parameters.items():
                if parameter is not None and not is_lazy(parameter) and parameter.dim() > 1:
                    skipped[joined(name, attribute)] = f"a matrix of {type(module).__name__}, not of a conv or Linear"
            continue
        if reason := choice.left_out(module, name):
            skipped[name] = reason
            continue
        parameter = module._parameters.get("weight")
        if parameter is not None and id(parameter) in seen:
            skipped[name] = f"shares its weight with {seen[id(parameter)]}"
            continue
        seen[id(parameter)] = name
        try:
            weight = measured_weight(joined(name, "weight"), module)
        except (TypeError, ValueError) as error:
            skipped[name] = str(error).removeprefix(f"{joined(name, 'weight')} ")
            continue
        layers[name] = layer_health(name, module, weight, full=full)
    return layers, skipped


def _why_none(model: nn.Module, skipped: Mapping[str, str]) -> str:
    hidden = reason_without_layers(model)
    return in_short(skipped) if skipped and hidden == HAS_NONE else hidden


def _with_activity(layers: dict[str, LayerHealth], found: DormancyReport) -> dict[str, LayerHealth]:
    dormant = {threshold: found.dormant(threshold) for threshold in DORMANT}
    scores, dead = found.scores, found.dead
    return {
        name: replace(
            layer,
            activity=Activity(scores[name], dead[name], {t: counts[name] for t, counts in dormant.items()}),
        )
        if name in scores
        else layer
        for name, layer in layers.items()
    }
