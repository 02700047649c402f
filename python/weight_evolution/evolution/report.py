"""What an evolution found and did."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from we_kernels import NonFiniteWeightError, Readback

from ..model.targets import KINDS
from ..reports import Report, Rows, finite, plain_dict
from ..tables import table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .device_step import Outcome


class EvolutionReport(Report):
    """Result of `WeightEvolution.step` or ``preview``; reading it may wait for the device, making it does not.

    Where the device was not waited for, the first reading of a result raises NonFiniteWeightError if a weight was not
    finite (unless ``check_finite`` is off); `finite` and `check_finite` can be asked at any time.
    """

    def __init__(
        self,
        epoch: int,
        crossover: str,
        rates: dict[str, float],
        kinds: Sequence[str],
        outcome: Outcome,
        pending: bool,
        local_ratio: float,
    ) -> None:
        self.epoch = epoch
        """The epoch just trained, from 0."""
        self.crossover = crossover
        self.rates = rates
        """For each kind that the model has, the scheduled rate."""
        self.kinds = dict(zip(outcome.names, kinds, strict=True))
        """Parameter name -> "conv", "norm_scale", "norm_shift" or "linear"."""
        self.filters = dict(zip(outcome.names, outcome.sizes, strict=True))
        """Parameter name -> number of filters."""
        self._outcome = outcome
        self._local_ratio = torch.tensor(local_ratio, dtype=torch.float32, device="cpu")
        self._threshold = Readback(outcome.selection.threshold)
        self.pending = pending
        """Whether the error of a weight that is not finite is still to be raised."""

    @property
    def _results(self) -> Outcome:
        self.raise_pending()
        return self._outcome

    @cached_property
    def thresholds(self) -> dict[str, float]:
        """Kind -> importance below which a filter is globally inferior; NaN for a kind that the model lacks."""
        self.raise_pending()
        return dict.fromkeys(KINDS[:3], math.nan) | dict(zip(self.rates, self._threshold.values(), strict=True))

    @cached_property
    def counters(self) -> dict[str, int]:
        """Kind -> starvation counter after the step; 0 for a kind that the model lacks."""
        return dict.fromkeys(KINDS[:3], 0) | dict(zip(self.rates, self._results.counters.tolist(), strict=True))

    @cached_property
    def donors(self) -> dict[str, Tensor]:
        """Parameter name -> int32 CPU tensor [N]: row that was crossed into this one, -1 for none."""
        return self._by_name(self._results.selection.donor)

    @cached_property
    def inferior(self) -> dict[str, int]:
        """Parameter name -> number of inferior filters that got a donor, `starved` ones included."""
        return {name: int((donor >= 0).sum()) for name, donor in self.donors.items()}

    @cached_property
    def starved(self) -> dict[str, int]:
        """Parameter name -> 1 where the starvation rule took a filter that is not locally inferior, else 0."""
        selected = dict(zip(self.filters, self._results.selection.inferior.tolist(), strict=True))
        return {
            name: int(selected[name] == 1 and self.kinds[name] != "linear" and not self._has_low(importance))
            for name, importance in self.importance_before.items()
        }

    @cached_property
    def unmatched(self) -> dict[str, int]:
        """Parameter name -> number of inferior filters beyond the layer's dominant ones, so left without a donor."""
        selected = dict(zip(self.filters, self._results.selection.inferior.tolist(), strict=True))
        return {name: selected[name] - matched for name, matched in self.inferior.items()}

    @cached_property
    def importance_before(self) -> dict[str, Tensor]:
        """Parameter name -> float32 CPU tensor [N]: importances that the selection was made from."""
        return self._by_name(self._results.selection.importance)

    @cached_property
    def importance_after(self) -> dict[str, Tensor]:
        """Parameter name -> float32 CPU tensor [N], after the crossover.

        Raises:
            ValueError: it was not measured.
        """
        after = self._results.importance_after
        if after is None:
            raise ValueError("importances after the step were not measured; use WeightEvolution(measure_after=True)")
        return self._by_name(after)

    @cached_property
    def finite(self) -> bool:
        """False when a weight was not finite; the step then changed nothing."""
        return not any(map(math.isnan, self._threshold.values()))

    def check_finite(self) -> None:
        """Raises NonFiniteWeightError, naming the parameters, when a weight was not finite."""
        self.pending = False
        if self.finite:
            return
        bad = [name for name, importance in self.importance_before.items() if not importance.isfinite().all()]
        raise NonFiniteWeightError(
            f"{', '.join(bad)}: a weight is NaN or infinite (or its L1 norm overflows float32, or the "
            "importance given is negative or not finite); nothing was changed. "
            "Lower the learning rate or restore a checkpoint; check_finite=False skips such steps silently"
        )

    def raise_pending(self) -> None:
        """`check_finite`, if it has not been asked yet."""
        if self.pending:
            self.check_finite()

    @property
    def arrived(self) -> bool:
        """Whether the device has done the step, so that `check_finite` need not wait."""
        return self._threshold.arrived

    def summary(self) -> str:
        """How many filters and elements of norms were replaced; waits for the device."""
        self.raise_pending()
        if not self.finite:
            return f"weight evolution after epoch {self.epoch}: not done, a weight is not finite"
        counts = (
            f"{self._total(self.inferior, kind)} of {self._total(self.filters, kind)} {kind}" for kind in self.rates
        )
        return f"weight evolution after epoch {self.epoch}: replaced {', '.join(counts)}"

    def scalars(self) -> dict[str, float]:
        """For each kind, as ``conv/inferior``: rate, threshold, filters, inferior, starved, unmatched, counter."""
        found: dict[str, float] = {}
        for kind, rate in self.rates.items():
            found |= {f"{kind}/rate": rate, f"{kind}/threshold": self.thresholds[kind]}
            found |= {f"{kind}/{name}": self._total(counts, kind) for name, counts in self._counts.items()}
            found[f"{kind}/counter"] = self.counters[kind]
        return finite(found)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain numbers, strings, lists and dicts; ``donors`` and importances by parameter."""
        parameters = {
            name: {
                "kind": kind,
                **{count: counts[name] for count, counts in self._counts.items()},
                "donors": self.donors[name],
                "importance_before": self.importance_before[name],
            }
            for name, kind in self.kinds.items()
        }
        return plain_dict(
            {
                "epoch": self.epoch,
                "crossover": self.crossover,
                "finite": self.finite,
                "totals": self.scalars(),
                "parameters": parameters,
            }
        )

    def table(self) -> str:
        """Groups, then every parameter."""
        self.raise_pending()
        lines = [f"weight evolution after epoch {self.epoch}, crossover {self.crossover!r}"]
        if not self.finite:
            lines.append("not done: a weight is not finite")
        rows: list[tuple[str, ...]] = [
            ("group", "rate", "threshold", "filters", "inferior", "starved", "unmatched", "counter")
        ]
        for kind, rate in self.rates.items():
            totals = (self._total(counts, kind) for counts in self._counts.values())
            counter = self.counters[kind]
            rows.append((kind, f"{rate:.4f}", f"{self.thresholds[kind]:.4g}", *map(str, totals), str(counter)))
        return "\n".join([*lines, *table(rows), "", *self._rows().lines()])

    def _rows(self) -> Rows:
        cells = []
        for name, importance in self.importance_before.items():
            span = (f"{importance.min():.4g}", f"{importance.max():.4g}") if len(importance) else ("-", "-")
            cells.append((name, *(str(counts[name]) for counts in self._counts.values()), *span))
        weights = [self.inferior[name] + self.unmatched[name] for name in self.importance_before]
        return Rows(("parameter", *self._counts, "smallest", "largest"), cells, weights)

    @property
    def _size(self) -> int:
        return len(self.filters)

    @property
    def _counts(self) -> dict[str, dict[str, int]]:
        counts = {"filters": self.filters, "inferior": self.inferior}
        return counts | {"starved": self.starved, "unmatched": self.unmatched}

    def _total(self, counts: dict[str, int], kind: str) -> int:
        return sum(counts[name] for name, of in self.kinds.items() if of == kind)

    def plot(self) -> Figure:
        """Importances of every layer before and after the step (needs matplotlib, the extra ``plot``).

        Raises:
            ImportError: matplotlib is not installed. ValueError: the report is a preview or was not measured after.
        """
        from .report_plot import Column, plot_columns

        before, after, donors = self.importance_before, self.importance_after, self.donors
        columns = [Column(name, of, before[name], after[name], donors[name] >= 0) for name, of in self.kinds.items()]
        title = f"Importances by layer, evolution after epoch {self.epoch} ({self.crossover} crossover)"
        return plot_columns(columns, {kind: self.thresholds[kind] for kind in self.rates}, title)

    def _has_low(self, importance: Tensor) -> bool:
        """Whether one of a layer's importances is locally inferior; a product of float32, as in the kernels."""
        return bool((importance <= importance.max() * self._local_ratio).any())

    def _by_name(self, per_filter: Tensor) -> dict[str, Tensor]:
        parts = torch.split(per_filter.cpu(), list(self.filters.values()))
        return dict(zip(self.filters, parts, strict=True))
