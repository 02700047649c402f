"""What a grafting found and did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from ..reports import Report, Rows, finite, plain_dict
from ..tables import table


@dataclass(frozen=True, repr=False)
class GraftingReport(Report):
    """Result of `FilterGrafting.step`: plain numbers of all networks, on every rank the same."""

    step: int
    """How many steps were made before this one."""
    level: str
    criterion: str
    entropies: list[dict[str, float]]
    """For each network: conv parameter name -> its information before the grafting, by the criterion."""
    coefficients: list[dict[str, float | Tensor]]
    """For each network: name of a parameter or buffer -> the share that it kept; at level "filter", float32 [N] where
    each filter has its own."""
    invalid_before: list[dict[float, int]]
    """For each network: threshold (0.1 and 0.01) -> conv filters whose L1 norm is under it."""
    invalid_after: list[dict[float, int]]
    filters: int
    """Conv filters of one network."""
    own: int | None
    """Number of this rank's network; None when all are in this process."""
    whole_layer: Mapping[str, str]
    """At level "filter": conv that was blended with one coefficient all the same -> why."""

    @property
    def networks(self) -> int:
        """K."""
        return len(self.entropies)

    def summary(self) -> str:
        """Invalid filters of each network before and after, by the larger threshold."""
        most = max(self.invalid_before[0])
        both = zip(self.invalid_before, self.invalid_after, strict=True)
        counts = ", ".join(f"{before[most]} -> {after[most]}" for before, after in both)
        return f"filter grafting, step {self.step}: of {self.filters} filters under {most:g} in each network {counts}"

    def scalars(self) -> dict[str, float]:
        """For each network, as ``0/invalid_after_0.1``, the invalid filters, and the mean information of its convs."""
        found: dict[str, float] = {"filters": self.filters}
        for i, entropies in enumerate(self.entropies):
            found |= {f"{i}/invalid_before_{t:g}": count for t, count in self.invalid_before[i].items()}
            found |= {f"{i}/invalid_after_{t:g}": count for t, count in self.invalid_after[i].items()}
            found[f"{i}/information"] = sum(entropies.values()) / max(len(entropies), 1)
        return finite(found)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain numbers, strings, lists and dicts."""
        return plain_dict({entry.name: getattr(self, entry.name) for entry in fields(self)})

    def table(self) -> str:
        """The networks, then every conv."""
        here = "" if self.own is None else f", this is network {self.own}"
        lines = [f"filter grafting, step {self.step}, level {self.level!r}, criterion {self.criterion!r}{here}"]
        thresholds = list(self.invalid_before[0])
        rows = [("network", "receives from", *(f"invalid under {t:g}" for t in thresholds), "filters")]
        for i in range(self.networks):
            counts = (f"{self.invalid_before[i][t]} -> {self.invalid_after[i][t]}" for t in thresholds)
            rows.append((str(i), str((i - 1) % self.networks), *counts, str(self.filters)))
        lines += [*table(rows), "", *self._rows().lines()]
        lines += [f"{name}: one coefficient for all filters: {why}" for name, why in self.whole_layer.items()]
        return "\n".join(lines)

    def _rows(self) -> Rows:
        columns = [f"{what} {i}" for i in range(self.networks) for what in ("information", "kept")]
        rows = []
        for name in self.entropies[0]:
            cells = (
                (f"{self.entropies[i][name]:.4f}", _kept(self.coefficients[i], name)) for i in range(self.networks)
            )
            rows.append((name, *(cell for pair in cells for cell in pair)))
        # The less information a conv has, the more of it comes from another network.
        least = [min(entropies[name] for entropies in self.entropies) for name in self.entropies[0]]
        return Rows(("conv", *columns), rows, [1 / (1 + max(value, 0)) for value in least])

    @property
    def _size(self) -> int:
        return len(self.entropies[0])


def _kept(coefficients: Mapping[str, float | Tensor], name: str) -> str:
    kept = coefficients.get(name)
    if kept is None:
        return "frozen"
    return f"{kept:.3f}" if isinstance(kept, float) else f"{kept.min():.3f}-{kept.max():.3f}"
