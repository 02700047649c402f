"""`HealthReport`: how the filters of a network are, layer by layer and in all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..measures.dormancy_report import THRESHOLDS as DORMANT
from ..measures.invalid_filters import PUBLISHED_THRESHOLDS as INVALID
from ..reports import Report, Rows, plain_dict
from .layer import ENERGIES, LayerHealth
from .previews import Preview
from .totals import totals


@dataclass(frozen=True, repr=False)
class HealthReport(Report):
    """What `filter_health` found; plain numbers, and tensors on the CPU."""

    layers: dict[str, LayerHealth]
    """By module name, in module order."""
    skipped: dict[str, str]
    """Layer or parameter name -> why it was not measured."""
    without_activity: dict[str, str]
    """Layer name -> why the activity of its units was not measured; empty without batches."""
    previews: dict[str, Preview]
    """Class name -> what that method would do."""
    advice: list[str]
    """Sentences, where the numbers support one."""
    parameters: int
    """Elements of all parameters."""

    def scalars(self) -> dict[str, float]:
        """All totals by name, for any logger: counts of filters and units, and what the methods would do."""
        found: dict[str, float] = {"parameters": self.parameters, **totals(self.layers)}
        for preview in self.previews.values():
            found |= {f"{preview.method}/{name}": value for name, value in preview.numbers.items()}
        return found

    def summary(self) -> str:
        """One line."""
        totals = self.scalars()
        shares = [f"{totals[name]:g} {name}" for name in ("zero", "inferior", "overlapping")]
        units = f"; {totals['dead']:g} dead of {totals['units']:g} units" if "units" in totals else ""
        return f"{totals['filters']:g} filters in {len(self.layers)} layers: {', '.join(shares)}{units}"

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain numbers, strings, lists and dicts, as JSON has them."""
        return plain_dict(
            {
                "summary": self.summary(),
                "totals": self.scalars(),
                "layers": {name: layer.to_dict() for name, layer in self.layers.items()},
                "skipped": self.skipped,
                "without_activity": self.without_activity,
                "previews": {p.method: {"sentence": p.sentence, **p.numbers} for p in self.previews.values()},
                "advice": self.advice,
            }
        )

    def to_html(self, title: str = "Filter health") -> str:
        """A page that needs no other file: the tables, with a figure of the layers.

        Raises:
            ImportError: matplotlib is not installed (the extra ``plot``).
        """
        from .html import page

        return page(self, title)

    def table(self) -> str:
        """All layers, and what was left out."""
        lines = self._rows().lines(_totals(self.scalars()))
        lines += [f"not measured: {name}: {reason}" for name, reason in self.skipped.items()]
        lines += [f"activity not measured: {name}: {reason}" for name, reason in self.without_activity.items()]
        return "\n".join(lines)

    def _rows(self) -> Rows:
        active = is_active(self.layers)
        found = [cells(name, layer, active) for name, layer in self.layers.items()]
        return Rows(headings(active), found, [_badness(layer) for layer in self.layers.values()])

    @property
    def _size(self) -> int:
        return len(self.layers)

    def __str__(self) -> str:
        parts = [[f"{preview.method}: {preview.sentence}" for preview in self.previews.values()], self.advice]
        return "\n\n".join([super().__str__(), *("\n".join(part) for part in parts)])


def is_active(layers: Mapping[str, LayerHealth]) -> bool:
    """Whether any layer's activity was measured."""
    return any(layer.activity is not None for layer in layers.values())


def headings(active: bool) -> list[str]:
    """Of the columns of `cells`; ``active``: with those of activity."""
    found = ["layer", "filters", "zero", "inferior", *(f"L1 < {t:g}" for t in INVALID), "alike", "mean cosine"]
    found += ["rank", "effective", *(f"at {share:.0%}" for share in ENERGIES)]
    if active:
        found += ["dead", *(f"<= {t:g}" for t in DORMANT)]
    return found


def cells(name: str, layer: LayerHealth, active: bool) -> list[str]:
    """One layer's row."""
    if not layer.finite:
        return [name or "(model)", str(layer.filters), "NaN", *["-"] * (len(headings(active)) - 3)]
    row = [name or "(model)", str(layer.filters), str(layer.zero), str(layer.inferior)]
    row += [str(layer.invalid[t]) for t in INVALID]
    if layer.spectrum is None:
        row += ["-", "-", str(layer.full_rank), "-", *["-"] * len(ENERGIES)]
    else:
        row += [str(layer.overlapping), f"{layer.mean_overlap or 0:.3f}", str(layer.full_rank)]
        row += [f"{layer.spectrum.effective_rank:.1f}", *(str(layer.spectrum.ranks[share]) for share in ENERGIES)]
    if active:
        measured = layer.activity
        row += ["-"] * (1 + len(DORMANT)) if measured is None else [str(measured.dead), *_dormant(measured.dormant)]
    return row


def _dormant(counts: Mapping[float, int]) -> list[str]:
    return [str(counts[threshold]) for threshold in DORMANT]


def _totals(totals: Mapping[str, float]) -> list[str]:
    """The last row of the table."""
    first = ["filters", "zero", "inferior", *(f"invalid_{threshold:g}" for threshold in INVALID), "overlapping"]
    last = ["dead", *(f"dormant_{threshold:g}" for threshold in DORMANT)] if "units" in totals else []
    unsummed = [""] * (3 + len(ENERGIES))
    return ["all", *(f"{totals[name]:g}" for name in first), *unsummed, *(f"{totals[name]:g}" for name in last)]


def _badness(layer: LayerHealth) -> float:
    if not layer.finite:
        return 2.0
    shares = [max(layer.zero, layer.inferior, layer.overlapping or 0) / max(layer.filters, 1)]
    if layer.activity is not None:
        shares.append(layer.activity.dormant[DORMANT[-1]] / max(len(layer.activity.scores), 1))
    return max(shares)
