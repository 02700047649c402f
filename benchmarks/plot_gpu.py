"""Draws the journal of a campaign, whole steps beside optimizers: ``python -m benchmarks.plot_gpu JOURNAL PICTURE``."""

from __future__ import annotations

import sys
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.journal import Journal

COLORS = {"triton": "#edae49", "native": "#d1495b", "AdamW(fused=True)": "#5b8db8"}
COLORS["SGD(foreach=True)"] = "#9aa5b1"


def draw_gpu(journal: Journal) -> Figure:
    """A panel for each dtype: median microseconds by network, in a graph where there is one, on a log axis."""
    rows = [row for row in journal.read("row") if row["op"].endswith("step") and row["backend"] in COLORS]
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    models = list(dict.fromkeys(row["model"] for row in rows))
    figure = Figure(figsize=(max(4.0, 1.3 * len(models)) * len(dtypes), 3.8), layout="constrained")
    for axes, dtype in zip(figure.subplots(1, len(dtypes), squeeze=False, sharey=True)[0], dtypes, strict=True):
        shown = [name for name in COLORS if any(r["backend"] == name and r["dtype"] == dtype for r in rows)]
        width = 0.8 / len(shown)
        for place, backend in enumerate(shown):
            times = {
                r["model"]: r["graph"] or r["seconds"] for r in rows if (r["backend"], r["dtype"]) == (backend, dtype)
            }
            left = [models.index(model) + (place - (len(shown) - 1) / 2) * width for model in times]
            heights = [1e6 * time["median"] for time in times.values()]
            axes.bar(left, heights, width, color=COLORS[backend], label=backend)
        axes.set_yscale("log")
        axes.set_xticks(range(len(models)), models, rotation=30, ha="right")
        axes.set_title(dtype)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("microseconds")
    figure.axes[0].legend(frameon=False, fontsize="small")
    for line in journal.read("versions"):
        figure.suptitle(f"{line.get('gpu', line['cpu'])}; torch {line['versions']['torch']}", fontsize="small")
    return figure


if __name__ == "__main__":
    draw_gpu(Journal(Path(sys.argv[1]))).savefig(sys.argv[2], dpi=150)
