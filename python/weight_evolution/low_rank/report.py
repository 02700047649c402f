"""What a projection did, and what the compact network costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple

import torch

import we_kernels as wk

from ..reports import Report, Rows, finite, plain_dict
from .layers import Layer

VANISHES = "largest singular value under 1e-4"


class Projected(NamedTuple):
    """What a step has projected."""

    layers: Sequence[Layer]
    ranks: Sequence[int]
    result: wk.LowRankResult | None
    """None without layers."""
    finite: Sequence[bool] | None = None
    """Whether the weight of each layer is; None: the report looks."""


class ProjectionReport(Report):
    """Result of `LowRankProjection.step`."""

    def __init__(
        self,
        step: int,
        projected: Projected,
        batch_norms: Mapping[str, str | None],
        left_out: Mapping[str, str],
    ) -> None:
        layers, ranks, self._result, self._finite_weights = projected
        self.step = step
        """How many steps were made before this one."""
        self.ranks = {layer.name: rank for layer, rank in zip(layers, ranks, strict=True)}
        """Layer name -> rank that it was projected onto."""
        self.batch_norms = {layer.name: batch_norms.get(layer.name) for layer in layers}
        """Layer name -> the BatchNorm it was rectified with."""
        self._layers = list(layers)
        self._shapes = {layer.name: (layer.rows, layer.columns) for layer in layers}
        self._dtypes = [layer.weight.dtype for layer in layers]
        self._left_out = dict(left_out)

    @cached_property
    def energy_kept(self) -> dict[str, float]:
        """Layer name -> share of its energy (sum of squared singular values) in the kept ranks, before the transfer.

        NaN for a layer without energy, or whose projection is beyond the range of its dtype.
        """
        if self._result is None:
            return {}
        kept, before = self._result.energy_kept.tolist(), self._result.energy_before.tolist()
        return {name: k / b if b else math.nan for name, k, b in zip(self.ranks, kept, before, strict=True)}

    @cached_property
    def skipped(self) -> dict[str, str]:
        """Layer name -> why it was not projected."""
        if self._result is None:
            return self._left_out
        flags, beyond = self._result.skipped.tolist(), self._result.energy_kept.isnan().tolist()
        if not self.finite:
            beyond = [False] * len(flags)
        why = VANISHES if self.finite else "nothing was projected: a weight is not finite"
        entries = zip(self.ranks, self._dtypes, flags, beyond, strict=True)
        return self._left_out | {
            name: f"its projection is beyond the range of {dtype}" if out else why
            for name, dtype, flag, out in entries
            if flag
        }

    @cached_property
    def finite(self) -> bool:
        """False when a weight, or the BatchNorm behind it, was not finite; the step then changed nothing."""
        return self._result is None or bool(self._result.energy_before.isfinite().all())

    def check_finite(self) -> None:
        """Raises NonFiniteWeightError, naming the parameters, when something was not finite."""
        if self.finite:
            return
        assert self._result is not None
        finite = self._result.energy_before.isfinite().tolist()
        bad = []
        for i, (layer, good) in enumerate(zip(self._layers, finite, strict=True)):
            if not good:
                whole = self._finite_weights
                in_weight = not (bool(layer.weight.isfinite().all()) if whole is None else whole[i])
                norm = self.batch_norms[layer.name]
                bad.append(f"{layer.name}.weight" if in_weight or norm is None else f"{norm} (behind {layer.name})")
        raise wk.NonFiniteWeightError(
            f"{', '.join(bad)}: not finite (or too large for its energy); nothing was changed. "
            "Lower the learning rate or restore a checkpoint; check_finite=False skips such steps silently"
        )

    def summary(self) -> str:
        """How many layers were projected, and the least energy that one kept; waits for the device."""
        if not self.finite:
            return f"low-rank projection, step {self.step}: not done, a weight is not finite"
        kept = self._kept
        least = f", at least {min(kept):.1%} of the energy kept" if kept else ""
        return f"low-rank projection, step {self.step}: {len(kept)} layers{least}"

    def scalars(self) -> dict[str, float]:
        """``layers`` projected; the mean and the least of their kept energies, ``energy_kept, energy_kept_least``."""
        kept = self._kept
        energies = {"energy_kept": sum(kept) / len(kept), "energy_kept_least": min(kept)} if kept else {}
        return finite({"layers": len(kept), **energies})

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain numbers, strings, lists and dicts."""
        layers = {
            name: {
                "rank": rank,
                "matrix": self._shapes[name],
                "energy_kept": self.energy_kept.get(name),
                "batch_norm": self.batch_norms[name],
            }
            for name, rank in self.ranks.items()
        }
        return plain_dict({"step": self.step, "totals": self.scalars(), "layers": layers, "skipped": self.skipped})

    def table(self) -> str:
        """Every layer, those that were left out, too."""
        left_out = [(name, "-", "-", "-", "-", reason) for name, reason in self._left_out.items()]
        return "\n".join([f"low-rank projection, step {self.step}", *self._rows().lines(*left_out)])

    def _rows(self) -> Rows:
        cells = []
        for name, (height, width) in self._shapes.items():
            energy = f"{self.energy_kept[name]:.4f}" if name in self.energy_kept else "-"
            norm = self.batch_norms[name] or "-"
            cells.append((name, f"{height} x {width}", str(self.ranks[name]), energy, norm, self.skipped.get(name, "")))
        lost = [1 - self.energy_kept.get(name, 1.0) for name in self._shapes]
        return Rows(("layer", "matrix", "rank", "energy kept", "batch norm", "note"), cells, lost)

    @property
    def _size(self) -> int:
        return len(self.ranks)

    @property
    def _kept(self) -> list[float]:
        """Energies of the layers that were projected."""
        return [energy for name, energy in self.energy_kept.items() if name not in self.skipped]


@dataclass(frozen=True)
class LayerCost:
    """One conv or Linear before and after."""

    name: str
    shape: tuple[int, ...]
    rank: int | None
    """None: the original stays."""
    macs_before: int
    macs_after: int
    reason: str
    """Why the original stays; empty when it was replaced."""


@dataclass(frozen=True, repr=False)
class CompactReport(Report):
    """Costs of the network and of its compact form; MACs are of one forward of ``input_size``."""

    input_size: tuple[int, ...]
    parameters_before: int
    parameters_after: int
    macs_before: int
    macs_after: int
    layers: list[LayerCost]
    latency_before: float | None = None
    """Median seconds of one forward; None unless asked for."""
    latency_after: float | None = None

    @property
    def parameters_share(self) -> float:
        """Share of the parameters that remains."""
        return self.parameters_after / self.parameters_before

    @property
    def macs_share(self) -> float:
        """Share of the multiply-accumulates that remains."""
        return self.macs_after / self.macs_before if self.macs_before else 1.0

    def summary(self) -> str:
        """Shares of parameters and multiply-accumulates that remain."""
        shares = f"{self.parameters_share:.1%} of the parameters, {self.macs_share:.1%} of the MACs"
        return f"compact network, input {'x'.join(map(str, self.input_size))}: {shares}"

    def scalars(self) -> dict[str, float]:
        """Parameters, MACs and, where they were measured, latencies, before and after; the shares that remain."""
        numbers = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        found = {name: value for name, value in numbers.items() if isinstance(value, (int, float))}
        return finite(found | {"parameters_share": self.parameters_share, "macs_share": self.macs_share})

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain numbers, strings, lists and dicts."""
        layers = {cost.name: asdict(cost) for cost in self.layers}
        return plain_dict({"input_size": self.input_size, "totals": self.scalars(), "layers": layers})

    def _rows(self) -> Rows:
        cells = [
            (
                cost.name,
                "x".join(map(str, cost.shape)),
                "-" if cost.rank is None else str(cost.rank),
                f"{cost.macs_before:,}",
                f"{cost.macs_after:,}",
                cost.reason,
            )
            for cost in self.layers
        ]
        saved = [cost.macs_before - cost.macs_after for cost in self.layers]
        return Rows(("layer", "shape", "rank", "MACs before", "MACs after", "original stays because"), cells, saved)

    @property
    def _size(self) -> int:
        return len(self.layers)

    def table(self) -> str:
        """Costs of the whole, then every layer."""
        lines = [
            f"compact network, input {'x'.join(map(str, self.input_size))}",
            f"parameters {self.parameters_before:,} -> {self.parameters_after:,} ({self.parameters_share:.1%})",
            f"MACs {self.macs_before:,} -> {self.macs_after:,} ({self.macs_share:.1%})",
        ]
        if self.latency_before is not None and self.latency_after is not None:
            lines.append(
                f"latency {1e3 * self.latency_before:.2f} ms -> {1e3 * self.latency_after:.2f} ms "
                f"({self.latency_before / self.latency_after:.2f}x), {torch.get_num_threads()} threads"
            )
        return "\n".join([*lines, *self._rows().lines()])
