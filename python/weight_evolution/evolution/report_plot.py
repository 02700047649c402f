"""The picture behind `EvolutionReport.plot`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .report import EvolutionReport

_TITLES = {
    "conv": "Convolution filters (L1 norm / kernels)",
    "norm_scale": "BatchNorm scales (magnitude)",
    "norm_shift": "BatchNorm shifts (magnitude)",
    "linear": "Linear rows (L1 norm / inputs)",
}


def plot_report(report: EvolutionReport) -> Figure:
    """One panel per kind, one column per layer, one dot per filter: untouched, replaced before and after."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot() needs matplotlib: pip install 'weight-evolution[plot]'") from error
    _ = report.importance_after  # raises before anything is drawn
    kinds = list(report.rates)
    columns = max(sum(kind == of for of in report.kinds.values()) for kind in kinds)
    figure = Figure(figsize=(min(4 + 0.28 * columns, 24), 3.2 * len(kinds)), layout="constrained")
    for axes, kind in zip(figure.subplots(len(kinds), 1, squeeze=False)[:, 0], kinds, strict=True):
        _draw_kind(axes, report, kind)
    figure.suptitle(f"Importances by layer, evolution after epoch {report.epoch} ({report.crossover} crossover)")
    return figure


def _draw_kind(axes: Axes, report: EvolutionReport, kind: str) -> None:
    names = [name for name, of in report.kinds.items() if of == kind]
    spread = torch.Generator().manual_seed(0)
    for column, name in enumerate(names):
        before, after = report.importance_before[name], report.importance_after[name]
        replaced = report.donors[name] >= 0
        x = column + 0.5 * (torch.rand(len(before), generator=spread, device="cpu") - 0.5)
        style: dict[str, Any] = {"s": 9, "linewidths": 0, "zorder": 2}
        axes.scatter(x[~replaced], before[~replaced], color="0.72", **style)
        axes.vlines(x[replaced], before[replaced], after[replaced], color="tab:blue", linewidth=0.5, alpha=0.5)
        axes.scatter(x[replaced], before[replaced], color="tab:red", **style)
        axes.scatter(x[replaced], after[replaced], color="tab:blue", **style)
    axes.axhline(report.thresholds[kind], color="black", linewidth=0.8, linestyle="--")
    values = torch.cat([report.importance_before[name] for name in names])
    positive = values[values > 0]
    axes.set_yscale("symlog", linthresh=float(positive.min()) if len(positive) else 1.0)
    axes.set_ylim(bottom=0)
    axes.set_xticks(range(len(names)), [name.removesuffix(".weight").removesuffix(".bias") for name in names])
    axes.tick_params(axis="x", labelrotation=90, labelsize=7)
    axes.set_xlim(-0.7, len(names) - 0.3)
    axes.set_title(_TITLES[kind], fontsize=10)
    axes.set_ylabel("importance")
    handles = [
        axes.scatter([], [], color=color, s=14, label=label)
        for color, label in (("0.72", "kept"), ("tab:red", "replaced: before"), ("tab:blue", "replaced: after"))
    ]
    line = axes.plot([], [], color="black", linewidth=0.8, linestyle="--", label="global threshold")
    axes.legend(handles=[*handles, *line], fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
