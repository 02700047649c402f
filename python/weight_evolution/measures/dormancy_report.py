"""`DormancyReport`: how active the units of each layer were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..arguments import check_not_negative
from ..reports import Report, Rows, plain_dict

THRESHOLDS = (0.025, 0.1)
"""Scores at most which a unit is reported as dormant: those of Sokar et al., arXiv 2302.12902."""
L1_RATIO = 0.1
"""Share of the layer's largest L1 norm at most which a unit is inferior, as WeightEvolution's local rule has it."""


@dataclass(frozen=True, repr=False)
class DormancyReport(Report):
    """The activity of units, by layer name in module order; all tensors are float64 [units] on the CPU."""

    activation: dict[str, Tensor]
    """Mean absolute activation over examples and positions."""
    outgoing: dict[str, Tensor]
    """Mean magnitude of each unit's outgoing weights."""
    incoming: dict[str, Tensor]
    """L1 norm of each unit's incoming weights, without the bias."""
    batches: dict[str, int]
    """Forward passes that were measured, of all ranks together."""
    skipped: dict[str, str]
    """Layer name -> why its units were not measured."""

    @property
    def scores(self) -> dict[str, Tensor]:
        """A unit's activation divided by its layer's mean (ReDo's score); all 0 in a layer that is dead altogether.

        Source: Sokar et al., "The Dormant Neuron Phenomenon in Deep Reinforcement Learning", ICML 2023, definition 3.1.
        """
        means = {name: activation.mean() for name, activation in self.activation.items()}
        return {
            name: activation / means[name].where(means[name] != 0, 1) for name, activation in self.activation.items()
        }

    @property
    def utility(self) -> dict[str, Tensor]:
        """Activation times the mean magnitude of the outgoing weights.

        Source: the contribution utility of Dohare et al., "Loss of plasticity in deep continual learning", Nature 632,
        2024, which has their sum, without its running average.
        """
        return {name: activation * self.outgoing[name] for name, activation in self.activation.items()}

    @property
    def units(self) -> dict[str, int]:
        """How many a layer has."""
        return {name: len(activation) for name, activation in self.activation.items()}

    @property
    def dead(self) -> dict[str, int]:
        """Units that never fired: their score is 0."""
        return self.dormant(0.0)

    def dormant(self, threshold: float) -> dict[str, int]:
        """Units of which the score is at most ``threshold``, dead ones included; one that is NaN is not.

        Raises:
            TypeError, ValueError: the threshold is no finite number from 0.
        """
        threshold = check_not_negative(threshold, "threshold")
        return {name: int((scores <= threshold).sum()) for name, scores in self.scores.items()}

    @property
    def inferior(self) -> dict[str, int]:
        """Units of which the L1 norm is at most 0.1 of the layer's largest, to compare with."""
        return {name: int((norms <= L1_RATIO * norms.max()).sum()) for name, norms in self.incoming.items()}

    def to_dict(self) -> dict[str, Any]:
        """All of it but ``outgoing`` and ``incoming`` as plain numbers, strings, lists and dicts."""
        dormant = {str(threshold): self.dormant(threshold) for threshold in THRESHOLDS}
        layers = {
            name: {
                "units": self.units[name],
                "dead": self.dead[name],
                "dormant": {threshold: counts[name] for threshold, counts in dormant.items()},
                "inferior": self.inferior[name],
                "batches": self.batches[name],
                "activation": self.activation[name],
                "scores": self.scores[name],
                "utility": self.utility[name],
            }
            for name in self.activation
        }
        return plain_dict({"totals": self.scalars(), "layers": layers, "skipped": self.skipped})

    def summary(self) -> str:
        """How many units never fired, and how many are dormant."""
        totals = self.scalars()
        dormant = ", ".join(f"{totals[f'dormant_{t:g}']:g} dormant at {t:g}" for t in THRESHOLDS)
        return f"{totals['units']:g} units in {self._size} layers: {totals['dead']:g} dead, {dormant}"

    def scalars(self) -> dict[str, float]:
        """Totals: units, dead, dormant_0.025, dormant_0.1, inferior."""
        return {name: sum(of.values()) for name, of in self._counts.items()}

    def table(self) -> str:
        """Every layer, and those that were not measured."""
        total = ["all", *(f"{value:g}" for value in self.scalars().values())]
        skipped = [f"skipped {name}: {reason}" for name, reason in self.skipped.items()]
        return "\n".join(self._rows().lines(total) + skipped)

    def _rows(self) -> Rows:
        headings = ["units", "dead", *(f"<= {threshold}" for threshold in THRESHOLDS), f"L1 <= {L1_RATIO}"]
        counts = self._counts
        cells = [[name, *(str(of[name]) for of in counts.values())] for name in self.activation]
        dormant = counts[f"dormant_{THRESHOLDS[-1]:g}"]
        return Rows(["layer", *headings], cells, [dormant[name] / max(units, 1) for name, units in self.units.items()])

    @property
    def _size(self) -> int:
        return len(self.activation)

    @property
    def _counts(self) -> dict[str, dict[str, int]]:
        dormant = {f"dormant_{threshold:g}": self.dormant(threshold) for threshold in THRESHOLDS}
        return {"units": self.units, "dead": self.dead, **dormant, "inferior": self.inferior}
