"""Runs of the study that are alike in shape, trained as one stack."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD

from experiments.graphed import GraphedSteps, captured
from experiments.journal import Result
from experiments.stacked import Stack
from experiments.study_arms import ARMS, BASELINE, Arm, Method, Training, projection_of, prune_
from experiments.study_data import Batches, Pool, Stream
from experiments.study_networks import make_network
from experiments.study_settings import CONDITIONS, Recipe, Run
from we_kernels import NonFiniteWeightError
from weight_evolution import FilterGrafting
from weight_evolution.training.randomness import seeded

INFERIOR = 0.1
"""A filter is inferior if its L1 norm is at most this share of its layer's largest, as in weight evolution's rule."""
_EVALUATED = 1000
"""Images of a pass."""


@dataclass(frozen=True)
class Shape:
    """What the runs of a stack have in common."""

    label_noise: float
    width: float
    epochs: int
    pruned: bool
    truncated: bool

    @classmethod
    def of(cls, run: Run, recipe: Recipe) -> Shape:
        """Of a run."""
        condition, arm = CONDITIONS[run.condition], ARMS[run.arm]
        epochs = arm.epochs * (recipe.repair_epochs if condition.pruned else recipe.epochs)
        width = condition.width * arm.width
        return cls(recipe.label_noise * condition.noisy, width, epochs, condition.pruned, arm.truncated)


class TooLong(Exception):
    """A stack would not be trained before the time is over."""


@dataclass(frozen=True)
class Place:
    """Where a study is trained, and where it keeps trained networks."""

    pool: Pool
    states: Path
    form: str
    deadline: float | None = None
    """On the clock of time.monotonic."""

    @property
    def device(self) -> torch.device:
        """Of all networks."""
        return self.pool.train.device

    def state_file(self, run: Run) -> Path:
        """Of the trained network of a run."""
        return self.states / f"{run.condition}-{run.arm}-{run.lr:g}-{run.weight_decay:g}-{run.seed}.pt"

    def clock(self, iterations: int) -> Clock:
        """For so many iterations that begin now."""
        return Clock(iterations, self.deadline, self.device)


class Clock:
    """Tells early whether iterations will be done in time, from the pace of those after the first few."""

    _FROM, _TO = 10, 50

    def __init__(self, iterations: int, deadline: float | None, device: torch.device) -> None:
        self._iterations, self._deadline, self._device = iterations, deadline, device
        self._started = 0.0

    def tick(self, done: int) -> None:
        """``done``: iterations so far.

        Raises:
            TooLong: they will not be done in time.
        """
        if self._deadline is None:
            return
        if done in (self._FROM, self._TO) and self._device.type == "cuda":
            torch.cuda.synchronize()
        now = time.monotonic()
        if done == self._FROM:
            self._started = now
        if done == self._TO:
            pace = (now - self._started) / (self._TO - self._FROM)
            now += pace * (self._iterations - done)
        if now > self._deadline:
            raise TooLong


def train(runs: Sequence[Run], recipe: Recipe, place: Place, bases: Mapping[int, Run]) -> list[Result | str]:
    """One result for each run, all of one `Shape`; a str: why there is none.

    Args:
        bases: seed -> the run whose trained network is pruned, of which the state is there.

    Raises:
        TooLong: the time would be over before the end.
    """
    shape = Shape.of(runs[0], recipe)
    trained = [_Trained(run, recipe, place, bases) for run in runs]
    if shape.truncated:
        first = shape.epochs // 2
        _train_epochs(trained, recipe, place, shape.label_noise, range(first))
        for one in trained:
            one.truncate()
        _train_epochs(trained, recipe, place, shape.label_noise, range(first, shape.epochs))
    else:
        _train_epochs(trained, recipe, place, shape.label_noise, range(shape.epochs))
    return [one.finish() for one in trained]


class _Trained:
    """A run's network, or two, with their optimizers and method."""

    def __init__(self, run: Run, recipe: Recipe, place: Place, bases: Mapping[int, Run]) -> None:
        self.run, self._recipe, self._place = run, recipe, place
        self.arm: Arm = ARMS[run.arm]
        self.streams = [Stream(run.seed, number) for number in range(self.arm.networks)]
        self.networks = [self._new_network(number) for number in range(self.arm.networks)]
        if CONDITIONS[run.condition].pruned:
            state = torch.load(place.state_file(bases[run.seed]), weights_only=True, map_location=place.device)
            self.networks[0].load_state_dict(state)
            if self.arm.pruned:
                prune_(self.networks[0])
        self.method_seconds = 0.0
        self.reason: str | None = None
        self._failed = False

    def begin(self, epochs: range, per_epoch: int) -> list[SGD]:
        """Optimizers of the networks."""
        lr, decay = self.run.lr * self.arm.lr, self.run.weight_decay
        self._lr, self._iterations = lr, len(epochs) * per_epoch
        self.optimizers = []
        for network in self.networks:
            groups = _groups(network, decay, decay if self.arm.decays_norms else 0.0)
            self.optimizers.append(SGD(groups, lr, momentum=self._recipe.momentum))
        return self.optimizers

    def equip(self, epochs: range, per_epoch: int) -> None:
        """With the method, once the networks are part of a stack."""
        self._method, self._grafting = Method(), None
        training = Training(self.networks[0], self.optimizers[0], len(epochs), per_epoch, self.run.seed)
        if (make := self.arm.make) is not None:
            self._do(lambda: setattr(self, "_method", make(training)))
        if (strength := self.arm.grafting_strength) is not None:
            self._do(lambda: setattr(self, "_grafting", FilterGrafting(self.networks, strength=strength)))
        self._last = epochs[-1]

    def before_step(self, done: int) -> None:
        """``done``: iterations since the method was equipped; the learning rate falls along half a cosine."""
        factor = 0.5 * (1 + math.cos(math.pi * done / self._iterations))
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self._lr * factor

    def after_step(self, done: int) -> None:
        """``done``: iterations, this one included."""
        self._do(lambda: self._method.after_step(done))

    def after_epoch(self, epoch: int, first: int) -> None:
        """``epoch`` of all, where the method was equipped before ``first``."""
        self._do(lambda: self._method.after_epoch(epoch - first))
        if self._grafting is not None and epoch != self._last:
            self._do(self._grafting.step)

    def truncate(self) -> None:
        """Put the best approximation of low rank in place of the network, as one does without the method."""
        self.networks = [projection_of(network, rectify_batch_norm=False).compact() for network in self.networks]

    def measured(self) -> nn.Module:
        """The network whose accuracy counts."""
        found: list[nn.Module | None] = [None]
        self._do(lambda: found.__setitem__(0, self._method.result()))
        return self.networks[0] if found[0] is None else found[0]

    def finish(self) -> Result | str:
        """The result; a str: why there is none."""
        if self.reason is not None:
            return self.reason
        recipe, place, network = self._recipe, self._place, self.measured()
        tuning = self.run.seed in recipe.tuning_seeds
        pool = place.pool
        images, labels = (pool.held_out, pool.held_out_labels) if tuning else (pool.test, pool.test_labels)
        counted = _filters(self.networks[0])
        accuracy = _accuracy(network, images, labels)
        if self.reason is not None:
            return self.reason
        if self.run.condition == "healthy" and self.run.arm == BASELINE:
            place.states.mkdir(parents=True, exist_ok=True)
            state = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
            torch.save(state, place.state_file(self.run))
        return {
            "accuracy": round(accuracy, 3),
            "images": "held-out" if tuning else "test",
            **counted,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "method_seconds": round(self.method_seconds, 3),
            **({"diverged": True} if self._failed else {}),
        }

    def _do(self, action: Callable[[], Any]) -> None:
        """Run what is the method's. A network that diverged goes on without it; any other fault ends the run alone."""
        if self._failed or self.reason is not None:
            return
        start = time.perf_counter()
        try:
            action()
        except NonFiniteWeightError:
            self._failed = True
        except Exception as error:
            self.reason = f"{type(error).__name__}: {error}"
            print(f"{self.run}: {self.reason}", file=sys.stderr, flush=True)
        self.method_seconds += time.perf_counter() - start

    def _new_network(self, number: int) -> nn.Module:
        recipe, condition = self._recipe, CONDITIONS[self.run.condition]
        width = condition.width * self.arm.width
        images = self._place.pool.train
        with seeded(torch.device("cpu"), "network", self.run.seed, number):
            network = make_network(recipe.network, images.shape[1], self._place.pool.classes, width)
        return network.to(self._place.device)


def _train_epochs(trained: Sequence[_Trained], recipe: Recipe, place: Place, label_noise: float, epochs: range) -> None:
    networks = [network for one in trained for network in one.networks]
    streams = [stream for one in trained for stream in one.streams]
    different = list(dict.fromkeys(streams))
    batches = Batches(place.pool, different, recipe.images, recipe.batch_size, label_noise)
    which = torch.tensor([different.index(stream) for stream in streams], device=place.device)
    optimizers = [optimizer for one in trained for optimizer in one.begin(epochs, batches.per_epoch)]
    graphs = captured if place.device.type == "cuda" else None
    steps = GraphedSteps(Stack(networks, optimizers, form=place.form), graphs)
    clock = place.clock(len(epochs) * batches.per_epoch)
    for one in trained:
        one.equip(epochs, batches.per_epoch)
    done = 0
    for epoch in epochs:
        for images, labels in batches.epoch(epoch):
            for one in trained:
                one.before_step(done)
            steps(images[which], labels[which])
            done += 1
            for one in trained:
                one.after_step(done)
            clock.tick(done)
        for one in trained:
            one.after_epoch(epoch, epochs[0])


def _groups(network: nn.Module, decay: float, decay_of_norms: float) -> list[dict[str, Any]]:
    """Weights of layers, then norms and biases."""
    parameters = list(network.parameters())
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": decay_of_norms},
    ]


@torch.no_grad()
def _accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Percent."""
    network.eval()
    correct = sum(
        (network(some).argmax(1) == right).sum()
        for some, right in zip(images.split(_EVALUATED), labels.split(_EVALUATED), strict=True)
    )
    return 100 * float(correct) / len(images)


@torch.no_grad()
def _filters(network: nn.Module) -> dict[str, int]:
    """How many there are, are inferior, and are zero."""
    norms = [m.weight.abs().flatten(1).sum(1) for m in network.modules() if isinstance(m, nn.Conv2d)]
    inferior, zero = (sum((n <= share * n.max()).sum() for n in norms) for share in (INFERIOR, 0.0))
    return {"filters": sum(map(len, norms)), "inferior": int(inferior), "zero": int(zero)}
