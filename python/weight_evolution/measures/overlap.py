"""`filter_overlap`: how alike the filters of each convolution are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import we_kernels as wk

from ..model.convolutions import convolutions
from ..model.module_filters import ModuleChoice, ModuleFilter
from ..model.targets import by_output
from ..tables import table


@dataclass(frozen=True)
class OverlapReport:
    """Absolute cosines between the filters of each convolution of a model, at one moment."""

    mean: dict[str, float]
    """Parameter name -> mean over the pairs of filters; 0 for a layer of one filter, NaN if a weight is not finite."""
    maximum: dict[str, Tensor]
    """Parameter name -> float32 [N] on the CPU: each filter's largest."""

    @property
    def model_mean(self) -> float:
        """Mean of the layers' means, each counted once; layers of one filter are left out. NaN without any."""
        means = [mean for name, mean in self.mean.items() if len(self.maximum[name]) > 1]
        return math.fsum(means) / len(means) if means else math.nan

    @property
    def model_maximum(self) -> float:
        """Mean over all filters of their `maximum`; layers of one filter are left out. NaN without any."""
        maxima = [maximum for maximum in self.maximum.values() if len(maximum) > 1]
        return float(torch.cat(maxima).double().mean()) if maxima else math.nan

    def __str__(self) -> str:
        rows = [("layer", "filters", "mean", "mean of maxima")]
        for name, mean in self.mean.items():
            maximum = self.maximum[name]
            rows.append((name, str(len(maximum)), f"{mean:.4f}", f"{float(maximum.mean()):.4f}"))
        filters = sum(map(len, self.maximum.values()))
        rows.append(("model", str(filters), f"{self.model_mean:.4f}", f"{self.model_maximum:.4f}"))
        return "\n".join(table(rows))


@torch.no_grad()
def measure_overlap(
    model: nn.Module, *, include: Sequence[ModuleFilter] | None = None, exclude: Sequence[ModuleFilter] = ()
) -> OverlapReport:
    """Mean and maxima of the absolute cosines between the flattened filters of each convolution.

    Convolutions of any kind, frozen ones and computed weights (parametrize, weight_norm) too, in module order; a shared
    weight is listed once. Waits for the device. The measure is defined in `we_kernels.filter_overlap`.

    Args:
        model: the network; only read.
        include: only modules of these names (with all inside them), name patterns (``*``) or types.
        exclude: no modules of these names, patterns or types.

    Raises:
        TypeError, ValueError: name the argument or parameter and say what to do.
    """
    found = convolutions(model, ModuleChoice(include, exclude))
    weights = {name: by_output(module, weight) for name, (module, weight) in found.items()}
    bank = wk.FilterBank(weights.values(), names=list(weights))
    overlap = wk.filter_overlap(bank)
    means, maxima = overlap.mean.tolist(), bank.split(overlap.maximum.cpu())
    positions = dict(zip(weights, bank.position, strict=True))
    return OverlapReport(
        {name: means[i] for name, i in positions.items()}, {name: maxima[i] for name, i in positions.items()}
    )


def filter_overlap(
    model: nn.Module, *, include: Sequence[ModuleFilter] | None = None, exclude: Sequence[ModuleFilter] = ()
) -> dict[str, float]:
    """Parameter name -> mean absolute cosine over the pairs of its filters; see `measure_overlap`, which gives more."""
    return measure_overlap(model, include=include, exclude=exclude).mean
