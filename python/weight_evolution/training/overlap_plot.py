"""The overlap of filters over the epochs, and the columns of the log that hold it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

OVERLAP_MEAN, OVERLAP_MAXIMUM = "overlap_mean", "overlap_maximum"
LAYER_OVERLAP = "overlap_of_"
"""Followed by the name of a convolution."""

# Okabe and Ito's colours, distinct for colour-blind readers.
COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7")
MARKERS = ("o", "s", "^", "D", "v")


def plot_overlap(histories: Mapping[str, Sequence[Mapping[str, float]]], path: Path) -> None:
    """Overlap by epoch; one PNG.

    Args:
        histories: label -> rows of the log. One: every layer has a line. Several: the models' means only.
        path: the file to write.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    for index, (label, history) in enumerate(histories.items()):
        rows = [row for row in history if OVERLAP_MEAN in row]
        epochs = [row["epoch"] + 1 for row in rows]
        if len(histories) == 1:
            layers = [column for column in (rows[0] if rows else ()) if column.startswith(LAYER_OVERLAP)]
            for place, layer in enumerate(layers):
                shade = colormaps["viridis"](place / max(len(layers) - 1, 1))
                axes.plot(
                    epochs,
                    [row[layer] for row in rows],
                    color=shade,
                    linewidth=0.9,
                    label=layer.removeprefix(LAYER_OVERLAP),
                )
        line = axes.plot(epochs, [row[OVERLAP_MEAN] for row in rows], linewidth=2.2, markersize=4, label=label)[0]
        line.set(color=COLOURS[index % len(COLOURS)], marker=MARKERS[index % len(MARKERS)])
    axes.set(title="Overlap of filters: mean |cosine| over pairs", xlabel="epoch", ylabel="overlap")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="x-small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=120)
