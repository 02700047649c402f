"""DQN for many agents at once, each with a game, a seed and a method of its own."""

from __future__ import annotations

import pickle
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss
from torch.optim import Adam, Optimizer

from experiments.journal import Result
from experiments.minatar_game import Game
from experiments.minatar_replay import Batch, Replay
from experiments.minatar_settings import ARMS, Part, Recipe
from experiments.stacked import Stack
from weight_evolution import UnitActivity, UnitAdamW
from weight_evolution.measures.dormancy_report import THRESHOLDS
from weight_evolution.training import UserError
from weight_evolution.training.randomness import seeded, stream_seed

MEASURED = 512
"""Remembered states with which dormant units are counted, at the end of a part."""


class Training:
    """Agents that play and learn, a step each at a time.

    Args:
        recipe: of all.
        runs: their methods (of `ARMS`) and seeds.
    """

    def __init__(self, recipe: Recipe, runs: Sequence[tuple[str, int]]) -> None:
        self._recipe, self._runs = recipe, list(runs)
        self._agents = [_Agent(recipe, arm, seed) for arm, seed in runs]
        self._stack = Stack(
            [agent.network for agent in self._agents], [agent.optimizer for agent in self._agents], own_steps=True
        )
        self._targets = self._stack.copy_parameters()
        self._replay = Replay(len(runs), recipe.capacity, self._agents[0].game.shape)
        self._seconds = 0.0
        self.steps = 0
        """Of each agent, so far."""

    @property
    def at_end_of_part(self) -> bool:
        """Whether `finish_part` is due."""
        return self.steps > 0 and self.steps % self._recipe.part == 0

    def step(self) -> None:
        """One step in every game, and the updates after it."""
        start = time.process_time()
        self._play()
        if self.steps % self._recipe.target_period == 0:
            self._targets = self._stack.copy_parameters()
        if self.steps >= self._recipe.warm_up:
            self._learn()
        self._seconds += time.process_time() - start

    def finish_part(self) -> dict[Part, Result]:
        """What every agent did since the last part."""
        dormant = self._dormant()
        seconds, self._seconds = self._seconds / len(self._agents), 0.0
        return {
            Part(arm, seed, self.steps): {**agent.finish_part(), "dormant": shares, "seconds": round(seconds, 1)}
            for (arm, seed), agent, shares in zip(self._runs, self._agents, dormant, strict=True)
        }

    def save(self, path: Path) -> None:
        """All that the next steps depend on."""
        path.parent.mkdir(parents=True, exist_ok=True)
        written = path.with_suffix(path.suffix + ".part")
        torch.save({**self._identity(), **self._state()}, written)
        written.replace(path)

    def load(self, path: Path) -> None:
        """Go on where `save` was called; only files of one's own, since pickle runs what they say.

        Raises:
            UserError: it is of other runs.
        """
        try:
            state = torch.load(path, weights_only=False)
            theirs = {name: state[name] for name in self._identity()}
        except (OSError, RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
            raise UserError(f"{path} cannot be read ({error!r}); remove it to start anew") from None
        if theirs != self._identity():
            raise UserError(f"{path} is of other runs or another recipe; remove it, or pass another --output")
        self.steps, self._seconds, self._targets = state["steps"], state["seconds"], state["targets"]
        self._replay.load_state_dict(state["replay"])
        for agent, own in zip(self._agents, state["agents"], strict=True):
            agent.load_state_dict(own)

    def _identity(self) -> dict[str, Any]:
        return {"recipe": asdict(self._recipe), "runs": self._runs}

    def _state(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "seconds": self._seconds,
            "targets": self._targets,
            "replay": self._replay.state_dict(),
            "agents": [agent.state_dict() for agent in self._agents],
        }

    def _play(self) -> None:
        states = np.stack([agent.game.state() for agent in self._agents])
        best = self._stack.predict(torch.from_numpy(states).float().unsqueeze(1)).argmax(2)
        random = max(self._recipe.epsilon, 1 - (1 - self._recipe.epsilon) * self.steps / self._recipe.epsilon_steps)
        played = [agent.play(greedy, random) for agent, greedy in zip(self._agents, best[:, 0].tolist(), strict=True)]
        actions, rewards, over = zip(*played, strict=True)
        self._replay.add(states, np.array(actions), rewards, over)
        self.steps += 1

    def _learn(self) -> None:
        recipe = self._recipe
        batch = self._replay.sample([agent.draws for agent in self._agents], recipe.updates * recipe.batch_size)
        values = self._values_to_learn(batch)
        parts = (part.split(recipe.batch_size, 1) for part in (batch.states, batch.actions, values))
        for states, actions, wanted in zip(*parts, strict=True):

            def losses(outputs: Tensor, actions: Tensor = actions, wanted: Tensor = wanted) -> Tensor:
                chosen = outputs.gather(2, actions.unsqueeze(2)).squeeze(2)
                return smooth_l1_loss(chosen, wanted, reduction="none").mean(1)

            self._stack.differentiate(states, losses)
            self._stack.step()
            for agent in self._agents:
                agent.after_update()

    def _values_to_learn(self, batch: Batch) -> Tensor:
        """[R, N]: the reward and what the next state is worth."""
        later = self._stack.predict(batch.next_states, self._targets).amax(2)
        return batch.rewards + self._recipe.discount * later.masked_fill(batch.over, 0.0)

    def _dormant(self) -> list[dict[str, float]]:
        """For each agent, threshold -> share of all units that are dormant at it."""
        draws = [np.random.default_rng(stream_seed("measured", seed, self.steps)) for _, seed in self._runs]
        for agent in self._agents:
            agent.activity.start()
        with torch.no_grad():
            self._stack.forward(self._replay.sample(draws, MEASURED).states)
        return [agent.dormant() for agent in self._agents]


class _Agent:
    """A network with its game, optimizer and method."""

    def __init__(self, recipe: Recipe, name: str, seed: int) -> None:
        arm = ARMS[name]
        self.game = Game(recipe.game, seed)
        with seeded(torch.device("cpu"), "network", seed):
            self.network = _network(self.game.shape, self.game.actions)
        self.optimizer = _optimizer(self.network, recipe, arm.own_age)
        self.activity = UnitActivity(self.network)
        self.draws = np.random.default_rng(stream_seed("agent", seed))
        self._method = arm.method(self.network, self.optimizer, seed) if arm.method else None
        self._return = 0.0
        self._returns: list[float] = []
        self._revived = 0

    def play(self, greedy: int, random: float) -> tuple[int, float, bool]:
        """The action that was taken, its reward, and whether the game is over."""
        action = int(self.draws.integers(self.game.actions)) if self.draws.random() < random else greedy
        reward, over = self.game.act(action)
        self._return += reward
        if over:
            self._returns.append(self._return)
            self._return = 0.0
        return action, reward, over

    def after_update(self) -> None:
        """What the method does, counted."""
        if self._method is not None and (report := self._method.step()) is not None:
            self._revived += report.total

    def dormant(self) -> dict[str, float]:
        """Threshold -> share of units, by what was measured."""
        self.activity.stop()
        report = self.activity.report()
        units = sum(report.units.values())
        return {f"{t:g}": round(sum(report.dormant(t).values()) / units, 4) for t in (0.0, *THRESHOLDS)}

    def finish_part(self) -> Result:
        """Returns of the games that ended in it, and units that were revived."""
        result = {"returns": self._returns, "revived": self._revived}
        self._returns, self._revived = [], 0
        return result

    def state_dict(self) -> dict[str, Any]:
        """All that its next steps depend on."""
        return {
            "game": self.game,
            "draws": self.draws,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "method": self._method and self._method.state_dict(),
            "part": (self._return, self._returns, self._revived),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was called."""
        self.game, self.draws = state["game"], state["draws"]
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self._method is not None:
            self._method.load_state_dict(state["method"])
        self._return, self._returns, self._revived = state["part"]


def _optimizer(network: nn.Module, recipe: Recipe, own_age: bool) -> Optimizer:
    if own_age:
        return UnitAdamW(network.parameters(), recipe.lr, eps=recipe.adam_eps, weight_decay=0.0)
    return Adam(network.parameters(), recipe.lr, eps=recipe.adam_eps, fused=True)


def _network(shape: Sequence[int], actions: int) -> nn.Module:
    """MinAtar's: a convolution of 16 filters 3 x 3 and a Linear of 128."""
    channels, height, width = shape
    return nn.Sequential(
        *(nn.Conv2d(channels, 16, 3), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(16 * (height - 2) * (width - 2), 128), nn.ReLU(), nn.Linear(128, actions)),
    )
