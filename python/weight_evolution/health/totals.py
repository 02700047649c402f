"""Counts of all layers together."""

from __future__ import annotations

from collections.abc import Mapping

from ..measures.dormancy_report import THRESHOLDS as DORMANT
from ..measures.invalid_filters import PUBLISHED_THRESHOLDS as INVALID
from .layer import LayerHealth


def totals(layers: Mapping[str, LayerHealth]) -> dict[str, int]:
    """Filters by what is wrong with them; where activity was measured, units, too."""
    every = list(layers.values())
    found = {
        "filters": sum(layer.filters for layer in every),
        "zero": sum(layer.zero for layer in every),
        "inferior": sum(layer.inferior for layer in every),
        **{f"invalid_{t:g}": sum(layer.invalid[t] for layer in every) for t in INVALID},
        "overlapping": sum(layer.overlapping or 0 for layer in every),
    }
    if activities := [layer.activity for layer in every if layer.activity is not None]:
        found["units"] = sum(len(activity.scores) for activity in activities)
        found["dead"] = sum(activity.dead for activity in activities)
        found |= {f"dormant_{t:g}": sum(activity.dormant[t] for activity in activities) for t in DORMANT}
    return found
