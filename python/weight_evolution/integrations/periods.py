"""A weight evolution that is told how far the training is, as often as one likes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from weight_evolution import EvolutionReport, StagedSigmoid, WeightEvolution

from ..arguments import check_count
from ..model.state import check_state


def period(epochs: int | None, steps: int | None, name_of_steps: str) -> tuple[int, bool]:
    """How long a period is, and whether in steps: one of ``every_n_epochs``, 1 when left out, and of steps.

    Raises:
        TypeError, ValueError: both are given, or one is no integer from 1.
    """
    if epochs is not None and steps is not None:
        raise ValueError(f"pass one of every_n_epochs and {name_of_steps}")
    if steps is not None:
        return check_count(steps, name_of_steps, 1), True
    return 1 if epochs is None else check_count(epochs, "every_n_epochs", 1), False


class PeriodicEvolution:
    """A `WeightEvolution` that acts once whenever a further period is over, and never after the end of the run.

    Asking again changes nothing, nor does asking for the first time where a saved run went on from: what has been acted
    on is part of the state.

    Args:
        model, optimizer, options: as of `WeightEvolution`. The schedule, when left out, is `StagedSigmoid.cifar` with
            its stages over the whole run.
        total: epochs (or iterations) of the whole run; None: unknown.
        every: length of a period, in the same unit.
        done: how many are over already, which are not made up for.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        total: int | None,
        every: int,
        done: int,
        options: Mapping[str, Any],
    ) -> None:
        scaled = {} if total is None else {"schedule": StagedSigmoid.cifar(epochs=total)}
        given = {name: value for name, value in options.items() if name != "schedule" or value is not None}
        self.evolution = WeightEvolution(model, **{"optimizer": optimizer, "epochs": total, **scaled, **given})
        self._every = every
        self._done = done

    def __repr__(self) -> str:
        return repr(self.evolution)

    def step(self, done: int) -> EvolutionReport | None:
        """Evolve if a period has ended since the last call; ``done`` epochs (or iterations) of the run are over."""
        ended = done // self._every > self._done // self._every
        self._done = max(self._done, done)
        return self.evolution.step(epoch=done - 1) if ended else None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; plain numbers and strings, fit for JSON."""
        return {"format": 1, "done": self._done, "evolution": self.evolution.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True) -> None:
        """Go on where `state_dict` was taken; ``strict`` and errors as of `WeightEvolution.load_state_dict`."""
        check_state(state, "EvolutionCallback", (1,), {"done": int, "evolution": dict})
        self.evolution.load_state_dict(state["evolution"], strict=strict)
        self._done = state["done"]
