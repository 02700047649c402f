"""The part of the demo in which units die: a network that must learn new random labels again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from weight_evolution import UnitActivity, UnitReactivation, WeightEvolution

from ..arguments import option, positive_int
from ..data import load_data
from ..randomness import generator, seeded
from .runs import Run

CLASSES = 10
METHODS: dict[str, Callable[..., UnitReactivation] | None] = {
    "baseline": None,
    "weight evolution": None,
    "ReDo": UnitReactivation.redo,
    "reactivation": UnitReactivation,
}


@dataclass(frozen=True)
class RandomLabels:
    """The tasks. Images stay the same; every task draws other labels for them, and goes on with the same network."""

    tasks: int = option(15, type=positive_int)
    epochs: int = option(30, flag="task_epochs", type=positive_int)
    """Of each task."""
    images: int = 500
    batch_size: int = 50

    def describe(self) -> str:
        """For the head of the table."""
        return (
            f"{self.tasks} tasks of {self.epochs} epochs, each with new random labels for the same {self.images} "
            f"digits; MLP 64-64, ReLU, Adam, batch {self.batch_size}"
        )


def make_network(inputs: int) -> nn.Module:
    """Two hidden layers of 64 units."""
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(inputs, 64), nn.ReLU()),
        *(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, CLASSES)),
    )


def train_on_random_labels(
    options: RandomLabels, label: str, method: str, lr: float, seed: int, device: torch.device
) -> Run:
    """All tasks, one after the other.

    Args:
        options: the tasks.
        label: the name of the run's row in the table.
        method: of `METHODS`. Reactivation acts once per epoch, as weight evolution does.
        lr: of Adam.
        seed: of initialization, images, labels and order.
        device: where to train.
    """
    images = _images(options, seed).to(device)
    with seeded(device, "model", seed):
        model = make_network(images[0].numel()).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    make = METHODS[method]
    reactivation = make(model, optimizer, every=len(images) // options.batch_size, seed=seed) if make else None
    # By default Linears do not evolve, and the rates fall with the epochs.
    evolution = (
        WeightEvolution(model, linear_rate=0.2, schedule=lambda base_rate, epoch: base_rate)
        if method == "weight evolution"
        else None
    )
    run = Run(label, seed, [])
    for task in range(options.tasks):
        start = time.perf_counter()
        labels = torch.randint(CLASSES, (len(images),), generator=generator("labels", seed, task)).to(device)
        correct = torch.zeros((), dtype=torch.int64, device=device)
        for epoch in range(options.epochs):
            order = torch.randperm(len(images), generator=generator("order", seed, task, epoch)).to(device)
            for batch in order.split(options.batch_size):
                logits = model(images[batch])
                correct += (logits.argmax(1) == labels[batch]).sum()
                optimizer.zero_grad()
                functional.cross_entropy(logits, labels[batch]).backward()
                optimizer.step()
                if reactivation:
                    reactivation.step()
            if evolution:
                evolution.step()
        accuracy = 100.0 * int(correct) / (len(images) * options.epochs)
        seconds = time.perf_counter() - start
        dead, units = _dead_units(model, images)
        row = {"task": task, "accuracy": accuracy, "dead_units": dead, "units": units, "seconds": seconds}
        run.history.append(row)
    return run


def _images(options: RandomLabels, seed: int) -> Tensor:
    """Float32 [N, 1, 8, 8], normalized."""
    dataset = load_data("digits")
    chosen = torch.randperm(len(dataset.train_images), generator=generator("images", seed))[: options.images]
    mean, deviation = dataset.statistics
    return (dataset.train_images[chosen].float() - mean) / deviation


@torch.no_grad()
def _dead_units(model: nn.Module, images: Tensor) -> tuple[int, int]:
    """How many hidden units no image activates, and how many there are."""
    with UnitActivity(model) as activity:
        model(images)
    return sum(activity.report().dead.values()), sum(activity.layer_sizes)
