"""The demo's figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..overlap_plot import COLOURS
from .runs import Run


def plot_demo(random_labels: Sequence[Run], stationary: Sequence[Run], path: Path) -> None:
    """Accuracy and dead units by task, accuracy by epoch: means and ranges over the seeds."""
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    accuracy, dead, test = figure.subplots(1, 3)
    colours = _colours([*random_labels, *stationary])
    _curves(accuracy, random_labels, "accuracy", colours)
    _curves(dead, random_labels, "dead_units", colours)
    _curves(test, stationary, "test_accuracy", colours)
    accuracy.axhline(10, color="grey", linestyle="--", linewidth=1)
    accuracy.set(title="New random labels every task", xlabel="task", ylabel="online accuracy, %")
    dead.set(
        title="Units that no image activates", xlabel="task", ylabel=f"of {random_labels[0].last('units')} hidden units"
    )
    test.set(title="Ordinary training (axis fits the second half)", xlabel="epoch", ylabel="test accuracy, %")
    _focus(test, stationary)
    for axes in (accuracy, dead):
        axes.set_ylim(bottom=0)
    for axes in (dead, test):
        axes.legend(title="mean and range of the seeds", fontsize="small", title_fontsize="small")
    figure.savefig(path, dpi=120)


def _colours(runs: Sequence[Run]) -> dict[str, str]:
    """The same for a method in all plots."""
    return dict(zip(dict.fromkeys(run.method for run in runs), COLOURS, strict=False))


def _curves(axes: Axes, runs: Sequence[Run], column: str, colours: dict[str, str]) -> None:
    for method in dict.fromkeys(run.method for run in runs):
        values = np.array([[row[column] for row in run.history] for run in runs if run.method == method], dtype=float)
        steps = np.arange(1, values.shape[1] + 1)
        axes.plot(steps, values.mean(0), color=colours[method], label=method, linewidth=1.8)
        axes.fill_between(steps, values.min(0), values.max(0), color=colours[method], alpha=0.15, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)


def _focus(axes: Axes, runs: Sequence[Run]) -> None:
    """The first epochs, far below, would flatten the rest."""
    half = [row["test_accuracy"] for run in runs for row in run.history[len(run.history) // 2 :]]
    low, high = min(half), max(half)
    margin = max(0.1 * (high - low), 0.2)
    axes.set_ylim(low - margin, min(high + margin, 100.0 + margin / 2))
