"""The steps that agents remember."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Batch(NamedTuple):
    """Steps of R agents, N of each."""

    states: Tensor
    """float32 [R, N, C, H, W]."""
    actions: Tensor
    """int64 [R, N]."""
    rewards: Tensor
    """float32 [R, N]."""
    over: Tensor
    """bool [R, N]: the game ended, and the next state is that of another."""
    next_states: Tensor
    """As ``states``."""


class Replay:
    """The last ``capacity`` steps of R agents that go on together; a state is kept once."""

    def __init__(self, agents: int, capacity: int, shape: Sequence[int]) -> None:
        self._count = 0
        self._states = np.zeros((agents, capacity, *shape), dtype=bool)
        self._actions = np.zeros((agents, capacity), dtype=np.int64)
        self._rewards = np.zeros((agents, capacity), dtype=np.float32)
        self._over = np.zeros((agents, capacity), dtype=bool)

    def add(self, states: NDArray[Any], actions: NDArray[Any], rewards: Sequence[float], over: Sequence[bool]) -> None:
        """One step of each agent, from the states that it saw."""
        place = self._count % self._states.shape[1]
        self._states[:, place], self._actions[:, place] = states, actions
        self._rewards[:, place], self._over[:, place] = rewards, over
        self._count += 1

    def sample(self, draws: Sequence[np.random.Generator], count: int) -> Batch:
        """``count`` steps of each agent, drawn by its generator; not the last one, whose next state is not known."""
        capacity = self._states.shape[1]
        ages = np.stack([own.integers(1, min(self._count, capacity), count) for own in draws])
        places = (self._count - 1 - ages) % capacity
        agents = np.arange(len(draws))[:, None]
        return Batch(
            torch.from_numpy(self._states[agents, places]).float(),
            torch.from_numpy(self._actions[agents, places]),
            torch.from_numpy(self._rewards[agents, places]),
            torch.from_numpy(self._over[agents, places]),
            torch.from_numpy(self._states[agents, (places + 1) % capacity]).float(),
        )

    def state_dict(self) -> dict[str, Any]:
        """All that is remembered, the states as bits."""
        kept = min(self._count, self._states.shape[1])
        return {
            "count": self._count,
            "states": np.packbits(self._states[:, :kept]),
            "actions": self._actions[:, :kept],
            "rewards": self._rewards[:, :kept],
            "over": self._over[:, :kept],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with what `state_dict` returned for as many agents, the same capacity and shape."""
        self._count = state["count"]
        kept = state["actions"].shape[1]
        seen = self._states[:, :kept]
        seen[:] = np.unpackbits(state["states"], count=seen.size).reshape(seen.shape)
        self._actions[:, :kept], self._rewards[:, :kept] = state["actions"], state["rewards"]
        self._over[:, :kept] = state["over"]
