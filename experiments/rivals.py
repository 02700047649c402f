"""The methods that a network can be trained with while its task changes, each as what to do around optimizer steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, Optimizer

from weight_evolution import ReactivationReport, UnitAdamW, UnitReactivation, WeightEvolution

EVERY = 10
"""Iterations between two steps of a method; activity is measured in all of them."""
L2_INIT = 1e-3
"""The best of 1e-2, 1e-3 and 1e-4 for the MLP on random labels, by the tuning seeds."""
REPLACEMENT_RATE = 1e-3
"""Of each iteration; the best of 1e-2, 1e-3 and 1e-4, likewise."""

Action = Callable[[], ReactivationReport | None]


@dataclass(frozen=True)
class Arm:
    """How one method trains a network."""

    after: Callable[[nn.Module, Optimizer, int], Action] | None = None
    """(network, optimizer, seed) -> what is done after each optimizer step."""
    before: Callable[[nn.Module], Action] | None = None
    """network -> what is done between the gradients and each step."""
    own_age: bool = False
    """With UnitAdamW instead of Adam."""
    fresh: bool = False
    """A new network for every task."""


def _every(method: Any) -> Action:
    """At every `EVERY`-th call a step of a method that does not count itself."""
    calls = 0

    def call() -> None:
        nonlocal calls
        calls += 1
        if calls % EVERY == 0:
            method.step()

    return call


def _evolution(crossover: str, network: nn.Module, optimizer: Optimizer, seed: int) -> Action:
    def constant(rate: float, epoch: int) -> float:
        return rate

    return _every(
        WeightEvolution(
            network,
            crossover=crossover,
            linear_rate=0.2,
            schedule=constant,
            optimizer=optimizer,
            check_finite=False,
            measure_after=False,
        )
    )


def _l2_init(network: nn.Module) -> Action:
    """Toward the first weights, by Kumar et al., "Maintaining Plasticity ...", 2023 (arXiv 2308.11958)."""
    parameters = [(p, p.detach().clone()) for p in network.parameters()]

    @torch.no_grad()
    def pull() -> None:
        for parameter, initial in parameters:
            assert parameter.grad is not None
            parameter.grad.add_(parameter - initial, alpha=2 * L2_INIT)

    return pull


def _continual_backprop(network: nn.Module, optimizer: Optimizer, seed: int) -> Action:
    """At every `EVERY`-th iteration so much at once: its rate, maturity and decay are of iterations."""
    rate, maturity, decay = REPLACEMENT_RATE * EVERY, 100 // EVERY, 0.99**EVERY
    return UnitReactivation.continual_backprop(
        network,
        optimizer,
        replacement_rate=rate,
        maturity=maturity,
        decay=decay,
        every=EVERY,
        batches=EVERY,
        seed=seed,
    ).step


def _redo(network: nn.Module, optimizer: Optimizer, seed: int) -> Action:
    return UnitReactivation.redo(network, optimizer, every=EVERY, batches=EVERY, seed=seed).step


def _reactivation(network: nn.Module, optimizer: Optimizer, seed: int) -> Action:
    return UnitReactivation(network, optimizer, every=EVERY, batches=EVERY, seed=seed).step


BASELINE, CLAIM, RELEASED = "baseline", "reactivation, own age", "WeightEvolution, released rule"
ARMS = {
    BASELINE: Arm(),
    "WeightEvolution, paper rule": Arm(partial(_evolution, "paper")),
    RELEASED: Arm(partial(_evolution, "released")),
    "L2-init": Arm(before=_l2_init),
    "continual backprop": Arm(_continual_backprop, own_age=True),
    "ReDo": Arm(_redo),
    "reactivation": Arm(_reactivation),
    "ReDo, own age": Arm(_redo, own_age=True),
    CLAIM: Arm(_reactivation, own_age=True),
    "fresh network": Arm(own_age=True, fresh=True),
}
"""Own age: with UnitAdamW. Fresh networks have it so that Adam starts anew with them."""


@torch.no_grad()
def start_anew(network: nn.Module, optimizer: Optimizer, other: nn.Module) -> None:
    """Give a network the weights and buffers of another, and its optimizer the state of one that has not moved."""
    network.load_state_dict(other.state_dict())
    for parameter in network.parameters():
        if isinstance(optimizer, UnitAdamW):
            rows = torch.ones(len(parameter), dtype=torch.bool)
            optimizer.reset_units_(parameter, rows=rows)
        elif isinstance(optimizer, SGD):
            optimizer.state[parameter]["momentum_buffer"].zero_()
