"""The demo's figure, and the overlap of filters over the epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .inferior import PUBLISHED_LOCAL_RATIO
from .methods.asynchronous import LAYER_OVERLAP, OVERLAP_MEAN

if TYPE_CHECKING:
    from .demo import Run

# Okabe and Ito's colours, distinct for colour-blind readers.
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7")
_MARKERS = ("o", "s", "^", "D", "v")
_SMALLEST = 1e-3
"""Importances below this share of the layer's largest are drawn here."""


def plot_demo(runs: Sequence[Run], methods: Sequence[str], path: Path) -> None:
    """Accuracy and inferior filters by epoch (mean, and range over the seeds), importances by layer; one PNG."""
    figure = Figure(figsize=(12, 8.5), layout="constrained")
    grid = figure.add_gridspec(2, 2)
    accuracy, inferior = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    layers = figure.add_subplot(grid[1, :])
    for index, method in enumerate(methods):
        own = [run for run in runs if run.method == method]
        _curve(accuracy, own, "test_accuracy", index, method)
        _curve(inferior, own, "inferior_filters", index, method)
        _layers(layers, own[0], index, len(methods), method)

    accuracy.set(title="Accuracy by epoch (axis fits the second half)", xlabel="epoch", ylabel="test accuracy, %")
    _focus(accuracy, runs)
    inferior.set(title="Inferior conv filters by epoch", xlabel="epoch", ylabel=f"of {runs[0].last('filters')} filters")
    inferior.set_ylim(bottom=0)
    for axes in (accuracy, inferior):
        axes.grid(alpha=0.3)
        axes.legend(title="mean and range of the seeds", fontsize="small", title_fontsize="small")
    names = [name.removesuffix(".weight") for name in runs[0].importances]
    layers.axhline(PUBLISHED_LOCAL_RATIO, color="grey", linestyle="--", linewidth=1)
    layers.annotate(
        "local ratio 0.1",
        (0.002, PUBLISHED_LOCAL_RATIO),
        xycoords=("axes fraction", "data"),
        xytext=(2, 3),
        textcoords="offset points",
        color="grey",
        fontsize="small",
    )
    layers.set(
        title=f"Importances by layer at the end (seed {runs[0].seed}): one mark per filter",
        ylabel="share of the layer's largest",
        yscale="log",
        xlim=(-0.6, len(names) - 0.4),
    )
    layers.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize="small")
    layers.grid(axis="y", alpha=0.3)
    legend = layers.legend(fontsize="small", loc="lower right")
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1.0)
    figure.savefig(path, dpi=120)


def plot_overlap(histories: Mapping[str, Sequence[Mapping[str, float]]], path: Path) -> None:
    """Overlap by epoch; one PNG.

    Args:
        histories: label -> rows of the log. One: every layer has a line. Several: the models' means only.
        path: the file to write.
    """
    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    for index, (label, history) in enumerate(histories.items()):
        rows = [row for row in history if OVERLAP_MEAN in row]
        epochs = [row["epoch"] + 1 for row in rows]
        if len(histories) == 1:
            layers = [column for column in (rows[0] if rows else ()) if column.startswith(LAYER_OVERLAP)]
            for place, layer in enumerate(layers):
                shade = colormaps["viridis"](place / max(len(layers) - 1, 1))
                axes.plot(epochs, [row[layer] for row in rows], color=shade, linewidth=0.9, label=_layer_label(layer))
        line = axes.plot(epochs, [row[OVERLAP_MEAN] for row in rows], linewidth=2.2, markersize=4, label=label)[0]
        line.set(color=_COLOURS[index % len(_COLOURS)], marker=_MARKERS[index % len(_MARKERS)])
    axes.set(title="Overlap of filters: mean |cosine| over pairs", xlabel="epoch", ylabel="overlap")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=120)


def _layer_label(column: str) -> str:
    return column.removeprefix(LAYER_OVERLAP)


def _curve(axes: Axes, runs: Sequence[Run], column: str, index: int, label: str) -> None:
    values = np.array([[row[column] for row in run.history] for run in runs], dtype=float)
    epochs = np.arange(1, values.shape[1] + 1)
    axes.plot(epochs, values.mean(0), color=_COLOURS[index], label=label, linewidth=1.8)
    axes.fill_between(epochs, values.min(0), values.max(0), color=_COLOURS[index], alpha=0.15, linewidth=0)


def _focus(axes: Axes, runs: Sequence[Run]) -> None:
    """The first epochs, far below, would flatten the rest."""
    half = [row["test_accuracy"] for run in runs for row in run.history[len(run.history) // 2 :]]
    low, high = min(half), max(half)
    margin = max(0.1 * (high - low), 0.2)
    axes.set_ylim(low - margin, min(high + margin, 100.0 + margin / 2))


def _layers(axes: Axes, run: Run, index: int, methods: int, label: str) -> None:
    x, y = [], []
    for position, importance in enumerate(run.importances.values()):
        largest = float(importance.max())
        offset = (index - (methods - 1) / 2) * 0.25
        x.append(np.full(len(importance), position + offset))
        y.append(importance.numpy() / largest if largest > 0 else np.zeros(len(importance)))
    axes.scatter(
        np.concatenate(x),
        np.maximum(np.concatenate(y), _SMALLEST),
        s=9,
        alpha=0.35,
        color=_COLOURS[index],
        marker=_MARKERS[index],
        linewidths=0,
        label=label,
    )
