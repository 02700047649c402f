"""What the demo keeps of a training run."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Run:
    """One trained network."""

    method: str
    seed: int
    history: list[dict[str, float]]
    importances: dict[str, Tensor]
    """Of the conv filters at the end."""

    def last(self, column: str) -> float:
        """A value of the last epoch."""
        return self.history[-1][column]

    @property
    def evolution_seconds(self) -> list[float]:
        """Of each evolution."""
        return [row["evolution_seconds"] for row in self.history if "evolution_seconds" in row]

    @property
    def train_seconds(self) -> float:
        """Of all epochs, without evolution and measuring."""
        return sum(row["train_seconds"] for row in self.history)
