"""Counting inferior filters the same way for every method, without changing the model."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from weight_evolution import WeightEvolution
from weight_evolution.evolution import EvolutionOptions

PUBLISHED_RATE = EvolutionOptions.conv_rate
PUBLISHED_LOCAL_RATIO = EvolutionOptions.local_ratio


@dataclass(frozen=True)
class InferiorFilters:
    """What `count_inferior_filters` found."""

    inferior: int
    filters: int
    importances: dict[str, Tensor]
    """Conv parameter name -> float32 CPU tensor [N]."""


def count_inferior_filters(
    model: nn.Module, rate: float = PUBLISHED_RATE, local_ratio: float = PUBLISHED_LOCAL_RATIO
) -> InferiorFilters:
    """Conv filters that are inferior globally and locally; the model is not changed.

    A filter counts when its importance is below the network's ``floor(F * rate)``-th smallest and at most
    ``local_ratio`` times its layer's largest. No schedule and no starvation rule, which are a method's state.

    Raises:
        ValueError: the model has no convolution. NonFiniteWeightError: a weight is NaN or infinite.
    """
    selector = WeightEvolution(
        model,
        conv_rate=rate,
        norm_scale_rate=0.0,
        norm_shift_rate=0.0,
        local_ratio=local_ratio,
        starvation_divisor=None,
        schedule=lambda base_rate, epoch: base_rate,
        measure_after=False,
        include=["*"],  # output layers, too
    )
    report = selector.preview(epoch=0)
    convs = [name for name, kind in report.kinds.items() if kind == "conv"]
    if not convs:
        raise ValueError("model has no convolution whose filters could be counted")
    return InferiorFilters(
        inferior=sum(report.inferior[name] + report.unmatched[name] for name in convs),
        filters=sum(report.filters[name] for name in convs),
        importances={name: report.importance_before[name] for name in convs},
    )
