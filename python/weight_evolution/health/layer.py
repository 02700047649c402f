"""`LayerHealth`: what one layer's weights say about its filters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import we_kernels as wk

from ..evolution import EvolutionOptions
from ..measures.invalid_filters import PUBLISHED_THRESHOLDS as INVALID
from ..measures.invalid_filters import as_rows, count_under
from .spectrum import LARGEST, Spectrum, spectrum

ALIKE = 0.95
"""Absolute cosine with another filter of its layer from which a filter is overlapping; an angle of 18 degrees."""
ENERGIES = (0.9, 0.99)
"""Shares of the energy whose ranks are reported."""


@dataclass(frozen=True)
class Activity:
    """How active a layer's units are behind their nonlinearity, relative to the layer's mean."""

    scores: Tensor
    """float64 [units]."""
    dead: int
    """Units that never fired."""
    dormant: dict[float, int]
    """Score -> units that have at most it; 0.025 and 0.1."""

    def to_dict(self) -> dict[str, Any]:
        """By name, for `HealthReport.to_dict`."""
        return {"dead": self.dead, "dormant": self.dormant, "scores": self.scores}


@dataclass(frozen=True)
class LayerHealth:
    """A convolution or Linear; its filters are output channels or rows."""

    name: str
    """The module's; "" for a model that is one layer."""
    kind: str
    """The module's class."""
    shape: tuple[int, ...]
    """Of the weight."""
    finite: bool
    """False: a weight is NaN or infinite, and nothing else was measured."""
    norms: Tensor
    """L1 norm of each filter, float64 [F] on the CPU."""
    zero: int
    """Filters of which all weights are 0."""
    inferior: int
    """Filters of which the L1 norm is at most 0.1 of the layer's largest (WeightEvolution's local rule)."""
    invalid: dict[float, int]
    """Threshold -> filters of which the L1 norm is under it; 0.1 and 0.01 as published for grafting."""
    overlapping: int | None
    """Filters that have an absolute cosine of at least 0.95 with another one. None, as the next two are, where both
    sides of the matrix are longer than 2,048; `filter_health` measures them with ``full``."""
    mean_overlap: float | None
    """Mean absolute cosine over the pairs of filters."""
    spectrum: Spectrum | None
    activity: Activity | None = None
    """None: no batches were given, or the layer's units are not understood."""

    @property
    def filters(self) -> int:
        """How many."""
        return len(self.norms)

    @property
    def full_rank(self) -> int:
        """The smaller side of the matrix [filters, elements of a filter]."""
        return min(self.filters, self.weights // max(self.filters, 1))

    @property
    def weights(self) -> int:
        """Elements of the weight."""
        return torch.Size(self.shape).numel()

    def to_dict(self) -> dict[str, Any]:
        """By name, for `HealthReport.to_dict`."""
        found: dict[str, Any] = {"kind": self.kind, "shape": self.shape, "filters": self.filters, "finite": self.finite}
        if not self.finite:
            return found
        found |= {
            "zero": self.zero,
            "inferior": self.inferior,
            "invalid": self.invalid,
            "overlapping": self.overlapping,
            "mean_overlap": self.mean_overlap,
            "full_rank": self.full_rank,
            "norms": self.norms,
        }
        if self.spectrum is not None:
            found |= {"effective_rank": self.spectrum.effective_rank, "rank_at_energy": self.spectrum.ranks}
        if self.activity is not None:
            found |= self.activity.to_dict()
        return found


def layer_health(name: str, module: nn.Module, weight: Tensor, *, full: bool) -> LayerHealth:
    """Of one layer, without activity. Waits for the device."""
    rows = as_rows(module, weight)
    norms = torch.linalg.vector_norm(rows, 1, 1).double().cpu()
    finite = bool(norms.isfinite().all())
    kind, shape = type(module).__name__, tuple(weight.shape)
    if not finite or not rows.numel():
        return LayerHealth(name, kind, shape, finite, norms, 0, 0, dict.fromkeys(INVALID, 0), None, None, None)
    measured = full or min(rows.shape) <= LARGEST
    mean_overlap, overlapping = _overlap(rows) if measured else (None, None)
    return LayerHealth(
        name,
        kind,
        shape,
        finite,
        norms,
        zero=int((norms == 0).sum()),
        inferior=int((norms <= EvolutionOptions.local_ratio * norms.max()).sum()),
        invalid=dict(zip(INVALID, count_under(norms, INVALID), strict=True)),
        overlapping=overlapping,
        mean_overlap=mean_overlap,
        spectrum=spectrum(rows, ENERGIES) if measured else None,
    )


def _overlap(rows: Tensor) -> tuple[float, int]:
    """Mean absolute cosine, and how many filters are overlapping."""
    found = wk.filter_overlap(wk.FilterBank([rows]))
    return float(found.mean), int((found.maximum >= ALIKE).sum())
