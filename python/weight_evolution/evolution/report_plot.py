"""The picture behind `EvolutionReport.plot`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..extras import install

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TITLES = {
    "conv": "Convolution filters (L1 norm / kernels)",
    "norm_scale": "BatchNorm scales (magnitude)",
    "norm_shift": "BatchNorm shifts (magnitude)",
    "linear": "Linear rows (L1 norm / inputs)",
}


class Column(NamedTuple):
    """The filters of one layer."""

    name: str
    kind: str
    before: Tensor
    after: Tensor
    replaced: Tensor


def plot_columns(columns: Sequence[Column], thresholds: Mapping[str, float], title: str) -> Figure:
    """One panel per kind of ``thresholds``, one column per layer, one dot per filter: untouched, replaced before and
    after."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(f"plot() needs matplotlib: {install('plot')}") from error
    panels = {kind: [column for column in columns if column.kind == kind] for kind in thresholds}
    width = min(4 + 0.28 * max(map(len, panels.values())), 24)
    figure = Figure(figsize=(width, 3.2 * len(panels)), layout="constrained")
    for axes, (kind, own) in zip(figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels.items(), strict=True):
        _draw_panel(axes, own, thresholds[kind])
        axes.set_title(_TITLES[kind], fontsize=10)
    figure.suptitle(title)
    return figure


def _draw_panel(axes: Axes, columns: Sequence[Column], threshold: float) -> None:
    spread = torch.Generator().manual_seed(0)
    for place, (_, _, before, after, replaced) in enumerate(columns):
        x = place + 0.5 * (torch.rand(len(before), generator=spread, device="cpu") - 0.5)
        style: dict[str, Any] = {"s": 9, "linewidths": 0, "zorder": 2}
        axes.scatter(x[~replaced], before[~replaced], color="0.72", **style)
        axes.vlines(x[replaced], before[replaced], after[replaced], color="tab:blue", linewidth=0.5, alpha=0.5)
        axes.scatter(x[replaced], before[replaced], color="tab:red", **style)
        axes.scatter(x[replaced], after[replaced], color="tab:blue", **style)
    axes.axhline(threshold, color="black", linewidth=0.8, linestyle="--")
    values = torch.cat([column.before for column in columns])
    positive = values[values > 0]
    axes.set_yscale("symlog", linthresh=float(positive.min()) if len(positive) else 1.0)
    axes.set_ylim(bottom=0)
    names = [column.name.removesuffix(".weight").removesuffix(".bias") for column in columns]
    axes.set_xticks(range(len(names)), names)
    axes.tick_params(axis="x", labelrotation=90, labelsize=7)
    axes.set_xlim(-0.7, len(names) - 0.3)
    axes.set_ylabel("importance")
    handles = [
        axes.scatter([], [], color=color, s=14, label=label)
        for color, label in (("0.72", "kept"), ("tab:red", "replaced: before"), ("tab:blue", "replaced: after"))
    ]
    line = axes.plot([], [], color="black", linewidth=0.8, linestyle="--", label="global threshold")
    axes.legend(handles=[*handles, *line], fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
