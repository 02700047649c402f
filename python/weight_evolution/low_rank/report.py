"""What a projection did, and what the compact network costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

import we_kernels as wk

from ..tables import table
from .layers import Layer

VANISHES = "largest singular value under 1e-4"


class ProjectionReport:
    """Result of `LowRankProjection.step`."""

    def __init__(
        self,
        step: int,
        layers: Sequence[Layer],
        ranks: Sequence[int],
        batch_norms: Mapping[str, str | None],
        left_out: Mapping[str, str],
        result: wk.LowRankResult | None,
    ) -> None:
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
        self._result = result

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
        for layer, good in zip(self._layers, finite, strict=True):
            if not good:
                in_weight = not bool(layer.weight.isfinite().all())
                norm = self.batch_norms[layer.name]
                bad.append(f"{layer.name}.weight" if in_weight or norm is None else f"{norm} (behind {layer.name})")
        raise wk.NonFiniteWeightError(
            f"{', '.join(bad)}: not finite (or too large for its energy); nothing was changed. "
            "Lower the learning rate or restore a checkpoint; check_finite=False skips such steps silently"
        )

    def __str__(self) -> str:
        rows = [("layer", "matrix", "rank", "energy kept", "batch norm", "note")]
        for name, (height, width) in self._shapes.items():
            energy = f"{self.energy_kept[name]:.4f}" if name in self.energy_kept else "-"
            norm = self.batch_norms[name] or "-"
            rows.append((name, f"{height} x {width}", str(self.ranks[name]), energy, norm, self.skipped.get(name, "")))
        rows += [(name, "-", "-", "-", "-", reason) for name, reason in self._left_out.items()]
        return "\n".join([f"low-rank projection, step {self.step}", *table(rows)])


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


@dataclass(frozen=True)
class CompactReport:
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

    def __str__(self) -> str:
        rows = [("layer", "shape", "rank", "MACs before", "MACs after", "original stays because")]
        rows += [
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
        return "\n".join([*lines, *table(rows)])
