"""The authors' released graft, timed on the same weights. Its code is loaded from a clone at run time."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.released import compile_functions

REPOSITORY = "https://github.com/fxmeng/filter-grafting"
PROGRAM = Path("grafting_cifar/grafting.py")
FUNCTIONS = ("entropy", "grafting")

State = dict[str, Tensor]


class ReleasedGraft:
    """Entropies and blend of the CIFAR program, whose coefficients have two decimals.

    There a network's process reads its neighbour's checkpoint from a file; here it gets the neighbour's weights.

    Raises:
        NotAReleaseError: ``path`` holds no such program.
    """

    def __init__(self, path: Path) -> None:
        self._code = compile_functions(path, PROGRAM, FUNCTIONS, REPOSITORY)

    def step(self, networks: Sequence[list[Tensor]], strength: float, sharpness: float) -> Callable[[], None]:
        """A function that grafts both networks, one after the other, each with the other's weights before."""
        received: State = {}
        program: dict[str, Any] = {
            "torch": _TorchThatLoads(received),
            "np": np,
            "collections": collections,
            "args": SimpleNamespace(a=strength, c=sharpness, s="", i=1),
        }
        exec(self._code, program)

        def graft() -> None:
            states = [{f"conv{i}.weight": weight for i, weight in enumerate(network)} for network in networks]
            before = {name: weight.clone() for name, weight in states[0].items()}
            for state, neighbour in ((states[0], states[1]), (states[1], before)):
                received.clear()
                received.update(neighbour)
                program["grafting"](_Network(state), 0)

        return graft


class _TorchThatLoads:
    """torch, but for `load`."""

    def __init__(self, received: State) -> None:
        self._received = received

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def load(self, path: str) -> dict[str, State]:
        """The neighbour's checkpoint."""
        return {"net": self._received}


class _Network:
    """What the program asks of a network."""

    def __init__(self, state: State) -> None:
        self._state = state

    def state_dict(self) -> State:
        return self._state

    def load_state_dict(self, state: State) -> None:
        for name, weight in state.items():
            self._state[name].copy_(weight)
