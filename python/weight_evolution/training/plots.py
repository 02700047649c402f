"""The demo's figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .demo_run import Run
from .inferior import PUBLISHED_LOCAL_RATIO
from .overlap_plot import COLOURS, MARKERS

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


def _curve(axes: Axes, runs: Sequence[Run], column: str, index: int, label: str) -> None:
    values = np.array([[row[column] for row in run.history] for run in runs], dtype=float)
    epochs = np.arange(1, values.shape[1] + 1)
    axes.plot(epochs, values.mean(0), color=COLOURS[index], label=label, linewidth=1.8)
    axes.fill_between(epochs, values.min(0), values.max(0), color=COLOURS[index], alpha=0.15, linewidth=0)


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
        color=COLOURS[index],
        marker=MARKERS[index],
        linewidths=0,
        label=label,
    )
