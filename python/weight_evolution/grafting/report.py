"""What a grafting found and did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..tables import table


@dataclass(frozen=True)
class GraftingReport:
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

    def __str__(self) -> str:
        here = "" if self.own is None else f", this is network {self.own}"
        lines = [f"filter grafting, step {self.step}, level {self.level!r}, criterion {self.criterion!r}{here}"]
        thresholds = list(self.invalid_before[0])
        rows = [("network", "receives from", *(f"invalid under {t:g}" for t in thresholds), "filters")]
        for i in range(self.networks):
            counts = (f"{self.invalid_before[i][t]} -> {self.invalid_after[i][t]}" for t in thresholds)
            rows.append((str(i), str((i - 1) % self.networks), *counts, str(self.filters)))
        lines += [*table(rows), ""]
        columns = [f"{what} {i}" for i in range(self.networks) for what in ("information", "kept")]
        rows = [("conv", *columns)]
        for name in self.entropies[0]:
            cells = (
                (f"{self.entropies[i][name]:.4f}", _kept(self.coefficients[i], name)) for i in range(self.networks)
            )
            rows.append((name, *(cell for pair in cells for cell in pair)))
        lines += table(rows)
        lines += [f"{name}: one coefficient for all filters: {why}" for name, why in self.whole_layer.items()]
        return "\n".join(lines)


def _kept(coefficients: Mapping[str, float | Tensor], name: str) -> str:
    kept = coefficients.get(name)
    if kept is None:
        return "frozen"
    return f"{kept:.3f}" if isinstance(kept, float) else f"{kept.min():.3f}-{kept.max():.3f}"
