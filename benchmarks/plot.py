"""Draws a result of run.py: how many times faster than vectorised PyTorch the whole step is, network by network."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

COLORS = {"per_layer": "#9aa5b1", "torch": "#5b8db8", "native": "#d1495b", "triton": "#edae49"}
LABELS = {"per_layer": "PyTorch, per layer", "torch": "torch backend", "native": "native", "triton": "triton"}
OPERATIONS = ("importance", "match", "crossover", "step")
BAR_RATE = 0.2


def draw(result: dict[str, Any]) -> Figure:
    """A panel for each network: median milliseconds of every operation by backend, with p20 to p80, on a log axis."""
    models = list(result["models"])
    figure = Figure(figsize=(4 * len(models), 3.6), layout="constrained")
    for axes, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models, strict=True):
        rows = [row for row in result["rows"] if row["model"] == model and row["rate"] in (None, BAR_RATE)]
        backends = [name for name in LABELS if any(row["backend"] == name for row in rows)]
        width = 0.8 / len(backends)
        for place, backend in enumerate(backends):
            times = {row["op"]: row for row in rows if row["backend"] == backend}
            shown = [times[op]["seconds"] for op in OPERATIONS]
            medians = [1e3 * seconds["median"] for seconds in shown]
            spread = [
                [1e3 * (seconds["median"] - seconds["p20"]) for seconds in shown],
                [1e3 * (seconds["p80"] - seconds["median"]) for seconds in shown],
            ]
            left = [i + (place - (len(backends) - 1) / 2) * width for i in range(len(OPERATIONS))]
            axes.bar(left, medians, width, color=COLORS[backend], label=LABELS[backend], yerr=spread, ecolor="#444444")
            if backend in ("native", "triton"):
                ratio = times["step"]["ratio_per_layer"]["median"]
                axes.annotate(
                    f"{ratio:.0f}x", (left[-1], 1e3 * shown[-1]["p80"]), (0, 4), textcoords="offset points", ha="center"
                )
        axes.set_yscale("log")
        axes.margins(y=0.15)
        axes.set_xticks(range(len(OPERATIONS)), OPERATIONS)
        axes.set_title(f"{model}: {result['models'][model]['filters']:,} filters")
        axes.spines[["top", "right"]].set_visible(False)
    first = figure.axes[0]
    first.set_ylabel("milliseconds")
    first.legend(frameon=False, fontsize="small")
    where = result.get("gpu") or f"{result['cpu']}, {result['threads']} threads"
    figure.suptitle(f"{where}; torch {result['versions']['torch']}", fontsize="small")
    return figure


def main() -> None:
    """Reads a JSON of run.py, writes a PNG."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path, help="a JSON file that run.py wrote")
    parser.add_argument("--output", type=Path, help="default: the same name, as .png")
    options = parser.parse_args()
    mpl.use("Agg")
    output = options.output or options.result.with_suffix(".png")
    draw(json.loads(options.result.read_text())).savefig(output, dpi=150)


if __name__ == "__main__":
    main()
