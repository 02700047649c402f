"""The layers of a report as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..evolution import EvolutionOptions
from ..extras import install
from ..measures.dormancy_report import THRESHOLDS as DORMANT
from .layer import LayerHealth

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


def draw(layers: Sequence[tuple[str, LayerHealth]]) -> Figure:
    """Shares of filters, norms and ranks by layer; layers that are not finite are left out.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(f"the figure needs matplotlib: {install('plot')}") from None
    shown = [(name, layer) for name, layer in layers if layer.finite and layer.filters]
    # By itself, not through pyplot, which would choose a backend and keep the figure.
    figure = Figure(figsize=(max(11.0, 0.22 * len(shown) + 2), 8.5), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True)
    _shares(axes[0], [layer for _, layer in shown])
    _norms(axes[1], [layer for _, layer in shown])
    _ranks(axes[2], [layer for _, layer in shown])
    axes[2].set_xticks(range(len(shown)), [name or "(model)" for name, _ in shown], rotation=90, fontsize=7)
    axes[2].set_xlim(-0.6, max(len(shown), 1) - 0.4)
    return figure


def _shares(axes: Axes, layers: Sequence[LayerHealth]) -> None:
    columns = {
        "zero": [layer.zero / layer.filters for layer in layers],
        "inferior (L1)": [layer.inferior / layer.filters for layer in layers],
        "alike": [(layer.overlapping or 0) / layer.filters for layer in layers],
    }
    if any(layer.activity is not None for layer in layers):
        threshold = DORMANT[-1]
        columns[f"dormant (<= {threshold:g})"] = [
            0.0 if layer.activity is None else layer.activity.dormant[threshold] / len(layer.activity.scores)
            for layer in layers
        ]
    width = 0.8 / len(columns)
    for i, (label, shares) in enumerate(columns.items()):
        places = [position - 0.4 + (i + 0.5) * width for position in range(len(layers))]
        axes.bar(places, [100 * share for share in shares], width, label=label)
    axes.set_ylabel("filters or units, %")
    axes.set_ylim(bottom=0)  # even where all are 0
    axes.legend(fontsize=7)


def _norms(axes: Axes, layers: Sequence[LayerHealth]) -> None:
    levels = torch.tensor(_QUANTILES, dtype=torch.float64)
    spans = [torch.quantile(layer.norms / layer.norms.max().clamp_min(1e-300), levels).tolist() for layer in layers]
    for position, (least, low, middle, high, most) in enumerate(spans):
        axes.plot([position, position], [least, most], color="C0", linewidth=1)
        axes.plot([position, position], [low, high], color="C0", linewidth=4)
        axes.plot(position, middle, "o", color="white", markersize=2)
    axes.axhline(EvolutionOptions.local_ratio, color="grey", linewidth=0.7, linestyle="--")
    axes.set_ylabel("L1 norm of filters,\nof the layer's largest")
    axes.set_ylim(0, 1.05)


def _ranks(axes: Axes, layers: Sequence[LayerHealth]) -> None:
    measured = [(i, layer.spectrum, layer.full_rank) for i, layer in enumerate(layers) if layer.spectrum is not None]
    positions = [i for i, _, _ in measured]
    axes.plot(positions, [s.effective_rank / full for _, s, full in measured], "o-", markersize=3, label="effective")
    for share in sorted({share for _, s, _ in measured for share in s.ranks}):
        ranks = [s.ranks[share] / full for _, s, full in measured]
        axes.plot(positions, ranks, "o-", markersize=3, label=f"for {share:.0%} of the energy")
    axes.set_ylabel("rank, of the full rank")
    axes.set_ylim(0, 1.05)
    if measured:
        axes.legend(fontsize=7)
