"""A game of MinAtar that starts again whenever it is lost."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from weight_evolution.training import UserError
from weight_evolution.training.randomness import stream_seed


class Game:
    """One of MinAtar's games, with sticky actions and rising difficulty, as they are by default.

    ``actions`` is the number of actions that make a difference in it, ``shape`` that of a state: [C, 10, 10].

    Source: Young and Tian, "MinAtar: An Atari-Inspired Testbed ..." (arXiv 1903.03176).

    Raises:
        UserError: MinAtar is not installed.
    """

    def __init__(self, name: str, seed: int) -> None:
        try:
            from minatar import Environment
        except ImportError:
            raise UserError("the games are those of MinAtar: pip install '.[experiments]'") from None
        self._environment = Environment(name)
        self._environment.seed(stream_seed("game", seed) % 2**32)
        self._environment.reset()
        self._moves = self._environment.minimal_action_set()
        self.actions = len(self._moves)
        height, width, channels = self._environment.state_shape()
        self.shape = (channels, height, width)

    def state(self) -> NDArray[np.bool_]:
        """What is seen now: `shape`."""
        seen: NDArray[np.bool_] = self._environment.state().transpose(2, 0, 1)
        return seen

    def act(self, action: int) -> tuple[float, bool]:
        """The reward, and whether the game was over and has started again."""
        reward, over = self._environment.act(self._moves[action])
        if over:
            self._environment.reset()
        return float(reward), bool(over)
