"""What the MinAtar experiment trains: games, methods, the recipe of all runs, a part of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from experiments.rivals import BASELINE, CLAIM
from weight_evolution import UnitReactivation

GAMES = ("asterix", "breakout", "freeway", "seaquest", "space_invaders")
EVERY = 1000
"""Updates between two steps of a method: ReDo's published period, for all methods."""
BATCHES = 16
"""Updates in which activity is measured: 512 states."""


@dataclass(frozen=True)
class Arm:
    """A method: (network, optimizer, seed) -> what acts after each update, and whether it is with `UnitAdamW`."""

    method: Callable[[nn.Module, Optimizer, int], UnitReactivation] | None = None
    own_age: bool = False


def _redo(network: nn.Module, optimizer: Optimizer, seed: int) -> UnitReactivation:
    return UnitReactivation.redo(network, optimizer, every=EVERY, batches=BATCHES, seed=seed)


def _reactivation(network: nn.Module, optimizer: Optimizer, seed: int) -> UnitReactivation:
    return UnitReactivation(network, optimizer, every=EVERY, batches=BATCHES, seed=seed)


ARMS = {
    BASELINE: Arm(),
    "ReDo": Arm(_redo),
    "reactivation": Arm(_reactivation),
    CLAIM: Arm(_reactivation, own_age=True),
}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """DQN: what every run depends on, beside its method and seed.

    Sources: Mnih et al., Nature 518 (2015), for the method; Young and Tian, "MinAtar" (arXiv 1903.03176), for the
    network; Ceron and Castro, "Revisiting Rainbow", ICML 2021, for the numbers.
    """

    game: str
    updates: int = 2
    """For each step in the game: the replay ratio."""
    lr: float = 2.5e-4
    adam_eps: float = 3.125e-4
    batch_size: int = 32
    discount: float = 0.99
    capacity: int = 100_000
    """Steps that are remembered."""
    warm_up: int = 1000
    """Steps before the first update."""
    target_period: int = 500
    """Steps between two copies of the network for the targets."""
    epsilon: float = 0.01
    """Share of random actions at the end; 1 at the start, and then less with each step."""
    epsilon_steps: int = 5000
    """Until the share is that of the end."""
    part: int = 1000
    """Steps of a part."""


@dataclass(frozen=True)
class Part:
    """So many steps of a run."""

    arm: str
    seed: int
    steps: int
    """Of the run at the end of the part."""
