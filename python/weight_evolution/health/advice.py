"""What the numbers of a network support: plain sentences."""

from __future__ import annotations

from collections.abc import Mapping

from .layer import ALIKE, LayerHealth
from .previews import Preview
from .totals import totals

FEW = 0.01
"""Share under which a finding is not worth a method: of filters, or of units."""
DUPLICATED = 0.05
"""Share of overlapping filters from which a network is worth making smaller."""
SMALLER = 0.75
"""Share of the parameters at most which a compact network is worth trying."""


def advice(layers: Mapping[str, LayerHealth], previews: Mapping[str, Preview], reason: str) -> list[str]:
    """One sentence for each finding; one that says so where there is none.

    Args:
        reason: why activity was not measured; empty where it was.
    """
    if broken := [name for name, layer in layers.items() if not layer.finite]:
        return [f"{', '.join(broken)}: a weight is NaN or infinite. Restore an earlier checkpoint; nothing else helps."]
    counts = totals(layers)
    found = [
        sentence
        for sentence in (
            _dead_units(counts),
            _zero_filters(counts),
            _inferior(counts, previews["WeightEvolution"]),
            _overlapping(counts),
            _low_rank(previews["LowRankProjection"]),
        )
        if sentence
    ]
    if not found:
        found = ["Nothing here needs a treatment: no method of this package helps a healthy network."]
    if reason:
        found.append(f"Whether units are dormant was not measured: {reason}.")
    return found


def _dead_units(counts: Mapping[str, int]) -> str:
    units, dead = counts.get("units", 0), counts.get("dead", 0)
    if dead <= FEW * units:
        return ""
    return (
        f"{dead} of {units} units ({dead / units:.0%}) never fire on these batches. If training goes on and what is to "
        "be learnt changes, UnitReactivation lets them start anew; on one task that stays, this gains nothing."
    )


def _zero_filters(counts: Mapping[str, int]) -> str:
    zero, filters = counts["zero"], counts["filters"]
    if zero <= FEW * filters:
        return ""
    return (
        f"{zero} of {filters} filters ({zero / filters:.0%}) are zero, as after pruning. To use them again, take one "
        "step of WeightEvolution with conv_rate and norm_scale_rate above that share, or UnitReactivation; else remove "
        "them."
    )


def _inferior(counts: Mapping[str, int], preview: Preview) -> str:
    replaced, filters = (preview.numbers.get(name, 0) for name in ("filters_replaced", "filters"))
    if replaced - counts["zero"] <= FEW * filters:
        return ""
    return (
        f"{replaced} of {filters} filters have a small L1 norm in the network and in their layer. Look whether the "
        "learning rate or the weight decay (on norms, too) is too large: mending that gains more than WeightEvolution, "
        "which replaces such filters."
    )


def _overlapping(counts: Mapping[str, int]) -> str:
    overlapping, filters = counts["overlapping"], counts["filters"]
    if overlapping <= DUPLICATED * filters:
        return ""
    return (
        f"{overlapping} of {filters} filters are nearly multiples of another one of their layer (cosine from {ALIKE}): "
        "the network is wider than what it learnt."
    )


def _low_rank(preview: Preview) -> str:
    share = preview.numbers.get("parameters_share", 1.0)
    if share > SMALLER:
        return ""
    return (
        f"The weights use few of their dimensions: {preview.sentence}. Compare a narrower network, truncation "
        "with fine-tuning, and LowRankProjection."
    )
