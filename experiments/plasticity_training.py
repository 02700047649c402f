"""Many runs of one setting of the plasticity experiment, trained as one stack."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from experiments.continual import Images, Stream, has_true_labels
from experiments.journal import Result
from experiments.plasticity_settings import SETTINGS, Recipe, Run, Setting
from experiments.rivals import Arm, start_anew
from experiments.stacked import Stack
from weight_evolution import UnitActivity, UnitAdamW
from weight_evolution.training.randomness import seeded

HELD_OUT = 500
"""Test images of a run, at most."""


def train(runs: Sequence[Run], recipe: Recipe, images: Images, deadline: float | None = None) -> list[Result] | None:
    """One result for each run, all of one setting and kind of optimizer; None if the time is over before they are done.

    Args:
        deadline: on the clock of time.monotonic.
    """
    setting = SETTINGS[runs[0].setting]
    streams = {run.seed: Stream(images, setting.labels, recipe.images, run.seed) for run in runs}
    trained = [_Trained(run, setting, streams[run.seed]) for run in runs]
    stack = Stack([one.network for one in trained], [one.optimizer for one in trained])
    for number in range(recipe.length(setting)):
        tasks = {seed: _ordered(stream, number, recipe) for seed, stream in streams.items()}
        indices, labels = (torch.stack(part) for part in zip(*(tasks[run.seed] for run in runs), strict=True))
        correct = torch.zeros(len(runs))
        for one in trained:
            one.begin(number)
        for batch, answers in zip(indices.split(recipe.batch_size, 1), labels.split(recipe.batch_size, 1), strict=True):
            outputs = stack.backward(images.train[batch], answers)
            correct += _accuracy(outputs, answers)
            for one in trained:
                one.before_step()
            stack.step()
            for one in trained:
                one.after_step()
            if deadline is not None and time.monotonic() > deadline:
                return None
        held_out = _held_out(stack, images) if has_true_labels(setting.labels, number) else [None] * len(runs)
        for one, online, accuracy in zip(trained, (correct / recipe.iterations).tolist(), held_out, strict=True):
            one.online.append(online)
            one.held_out.append(accuracy)
    return _results(trained, stack, images.train[indices[:, : recipe.images]])


class _Trained:
    """A network of a stack, with its optimizer and method."""

    def __init__(self, run: Run, setting: Setting, stream: Stream) -> None:
        self._arm = arm = setting.arms[run.arm]
        self._setting, self._stream, self._seed = setting, stream, run.seed
        self.network = self._new_network(0)
        self.optimizer = _optimizer(setting, arm, self.network, run.lr)
        self.before_step = arm.before(self.network) if arm.before else _nothing
        self._after = arm.after(self.network, self.optimizer, run.seed) if arm.after else _nothing
        self.online: list[float] = []
        self.held_out: list[float | None] = []
        self.revived = 0

    def begin(self, task: int) -> None:
        """Of a task."""
        if self._arm.fresh and task:
            start_anew(self.network, self.optimizer, self._new_network(task))

    def after_step(self) -> None:
        """What the method does, counted."""
        if (report := self._after()) is not None:
            self.revived += report.total

    def _new_network(self, task: int) -> nn.Module:
        with seeded(torch.device("cpu"), "network", self._seed, task):
            return _network(self._setting.network, self._stream.images.train.shape[1:], self._stream.classes)


def _ordered(stream: Stream, number: int, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """Images and labels of a task in the order of training, int64 [iterations * batch size]."""
    indices, labels = stream.task(number)
    order = stream.order(number, recipe.batch_size * recipe.iterations)
    return indices[order], labels[order]


def _accuracy(outputs: Tensor, labels: Tensor) -> Tensor:
    """Of each network, [R]."""
    return (outputs.argmax(2) == labels).float().mean(1)


def _held_out(stack: Stack, images: Images) -> list[float]:
    test = images.test[:HELD_OUT].expand(len(stack.networks), -1, -1, -1, -1)
    found: list[float] = _accuracy(stack.predict(test), images.test_labels[:HELD_OUT]).tolist()
    return found


def _results(trained: Sequence[_Trained], stack: Stack, images: Tensor) -> list[Result]:
    """Dead units are those that fire for none of the images."""
    activities = [UnitActivity(one.network).start() for one in trained]
    with torch.no_grad():
        stack.forward(images)
    return [
        {
            "online": [round(value, 5) for value in one.online],
            "held_out": one.held_out,
            "dead": round(float((activity.activations() == 0).float().mean()), 5),
            "revived": one.revived,
        }
        for one, activity in zip(trained, activities, strict=True)
    ]


def _nothing() -> None:
    return None


def _optimizer(setting: Setting, arm: Arm, network: nn.Module, lr: float) -> Optimizer:
    if setting.optimizer == "SGD":
        return SGD(network.parameters(), lr, momentum=0.9)
    if arm.own_age:
        return UnitAdamW(network.parameters(), lr, weight_decay=0.0)
    return Adam(network.parameters(), lr)


def _network(name: str, shape: torch.Size, classes: int) -> nn.Module:
    """Conv net 8-16-16 and 32, or MLP 64-64, with ReLU and PyTorch's own initialisation."""
    channels, height, width = shape
    if name == "mlp":
        sizes = [channels * height * width, 64, 64]
        hidden = [part for i in range(2) for part in (nn.Linear(sizes[i], sizes[i + 1]), nn.ReLU())]
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(64, classes))
    normed = name == "conv-norm"

    def layer(inputs: int, outputs: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=not normed)
        return [convolution, *([nn.BatchNorm2d(outputs)] if normed else []), nn.ReLU()]

    return nn.Sequential(
        *(*layer(channels, 8), nn.MaxPool2d(2), *layer(8, 16), *layer(16, 16), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(16 * (height // 4) * (width // 4), 32), nn.ReLU(), nn.Linear(32, classes)),
    )
