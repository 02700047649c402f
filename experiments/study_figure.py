"""The study's figure: what every arm changes, table by table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from experiments.paired import half_width
from experiments.study_arms import BASELINE
from experiments.study_settings import Recipe, Results, Table
from experiments.study_tables import differences, reported
from weight_evolution.training import UserError
from weight_evolution.training.errors import needed

_WORST = -8.0
"""Points; what lies below is drawn at the edge, with its number."""


def plot(chosen: Sequence[Table], recipe: Recipe, results: Results, path: Path) -> None:
    """Mean differences from the baseline with their 95% intervals, of tables with any.

    Raises:
        UserError: matplotlib is missing, or there is no arm with two seeds.
    """
    needed("matplotlib", "--figure", "plot")
    from matplotlib.figure import Figure

    found: dict[str, dict[str, list[float]]] = {}
    for table in chosen:
        rows = {row: reported(*source, recipe, results) for row, source in table.rows.items()}
        kept = {row: values for row, values in differences(rows, BASELINE, results).items() if len(values) > 1}
        if kept:
            found[table.title] = kept
    if not found:
        raise UserError("there is nothing to draw yet: no arm has two seeds")
    heights = [len(rows) + 1.5 for rows in found.values()]
    figure = Figure(figsize=(8, 0.24 * sum(heights) + 0.5), layout="constrained")
    panels = figure.subplots(len(found), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (title, changes) in zip(panels, found.items(), strict=True):
        for place, values in enumerate(changes.values()):
            mean, spread = statistics.fmean(values), half_width(values)
            colour = "tab:green" if mean > spread else "tab:red" if mean < -spread else "tab:grey"
            axes.errorbar(max(mean, _WORST), place, xerr=spread, fmt="o", color=colour, markersize=4, capsize=2)
            if mean < _WORST:
                axes.annotate(f"{mean:.1f}", (_WORST, place), (6, 3), textcoords="offset points", fontsize=7)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_yticks(range(len(changes)), list(changes), fontsize=7)
        axes.set_ylim(len(changes) - 0.5, -0.5)
        axes.grid(axis="x", alpha=0.3)
    panels[-1].set_xlabel(f"test accuracy minus that of the {BASELINE}, points")
    figure.savefig(path, dpi=90)
