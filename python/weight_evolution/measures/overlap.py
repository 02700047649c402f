"""`filter_overlap`: how alike the filters of each convolution are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import we_kernels as wk

from ..model.convolutions import convolutions
from ..model.module_filters import ModuleChoice, ModuleFilter
from ..model.targets import by_output
from ..reports import Report, Rows, finite, plain_dict


@dataclass(frozen=True, repr=False)
class OverlapReport(Report):
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

    @property
    def filters(self) -> int:
        """Of all layers."""
        return sum(map(len, self.maximum.values()))

    def summary(self) -> str:
        """Both means."""
        return f"{self.filters} filters: mean cosine {self.model_mean:.4f}, mean of maxima {self.model_maximum:.4f}"

    def scalars(self) -> dict[str, float]:
        """``filters``, ``mean`` and ``maximum``: those of the model."""
        return finite({"filters": self.filters, "mean": self.model_mean, "maximum": self.model_maximum})

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain numbers, lists and dicts."""
        layers = {name: {"mean": mean, "maximum": self.maximum[name]} for name, mean in self.mean.items()}
        return plain_dict({"totals": self.scalars(), "layers": layers})

    def table(self) -> str:
        """Every layer."""
        total = ["model", str(self.filters), f"{self.model_mean:.4f}", f"{self.model_maximum:.4f}"]
        return "\n".join(self._rows().lines(total))

    def _rows(self) -> Rows:
        maxima = [float(maximum.mean()) for maximum in self.maximum.values()]
        counts = [str(len(maximum)) for maximum in self.maximum.values()]
        columns = zip(self.mean.items(), counts, maxima, strict=True)
        cells = [[name, count, f"{mean:.4f}", f"{maximum:.4f}"] for (name, mean), count, maximum in columns]
        return Rows(["layer", "filters", "mean", "mean of maxima"], cells, maxima)

    @property
    def _size(self) -> int:
        return len(self.mean)


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
