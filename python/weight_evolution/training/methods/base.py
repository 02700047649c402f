"""What a training method is to the trainer."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..arguments import add_options, options_of
from ..parallel.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")


class Training(NamedTuple):
    """What a method is made for."""

    model: nn.Module
    """The network in training."""
    optimizer: Optimizer
    input_size: Sequence[int]
    """Of one image, [C, H, W]."""
    seed: int
    """The run's, from which everything random in a method follows."""
    ranks: Ranks = ALONE
    """The processes that train the network together."""

    @property
    def example(self) -> Tensor:
        """What `example_image` gives."""
        return example_image(self.model, self.input_size)


class Method:
    """One training method: an object with hooks that the trainer calls. These defaults do nothing.

    Args:
        training: the network and its optimizer.
        options: what `options` made of the command line; plain values.
    """

    name: ClassVar[str]
    kind: ClassVar[type[DataclassInstance]]
    """Of its options, as a checkpoint holds them; made by `arguments.option`."""
    title: ClassVar[str]
    """Heads its options in the help of the command ``train``; `description` is the text below."""
    description: ClassVar[str | None] = None
    prefix: ClassVar[str] = ""
    """Of the names that its options have there."""
    said: ClassVar[tuple[str, str] | None] = None
    """A column of the log, and what is said of it after an epoch, with its value as {}."""
    options_of_epochs: ClassVar[tuple[str, ...]] = ()
    """Names of the options that follow from the number of epochs; a run that is extended gets new ones."""

    def __init__(self, training: Training, options: Mapping[str, Any]) -> None:
        self.training = training
        self.model = training.model
        self.device = next(training.model.parameters()).device

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
        """Add the method's options to the command ``train``, as a group, which is returned."""
        group = parser.add_argument_group(cls.title, cls.description)
        add_options(group, cls.kind, cls.prefix)
        return group

    @classmethod
    def options(cls, arguments: argparse.Namespace) -> dict[str, Any]:
        """The options as plain values, for the configuration that a checkpoint holds."""
        return asdict(options_of(cls.kind, arguments, cls.prefix))

    def extra_loss(self, images: Tensor, logits: Tensor) -> Tensor:
        """Added to the cross-entropy of each batch; the trainer calls it only where a method has its own.

        Args:
            images: the network's input, normalized.
            logits: what it gave for them.
        """
        return logits.new_zeros(())

    def after_iteration(self) -> None:
        """Called after each step of the optimizer; the trainer calls it only where a method has its own."""

    def after_epoch(self, epoch: int) -> dict[str, float]:
        """Called after the accuracy of ``epoch`` (from 0) was measured; returns columns for the log."""
        return {}

    @classmethod
    def describe(cls, row: Mapping[str, float]) -> list[str]:
        """What is said of an epoch, from the method's columns in its row of the log, if it has any there."""
        return [cls.said[1].format(row[cls.said[0]])] if cls.said is not None and cls.said[0] in row else []

    @classmethod
    def summarize(cls, history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        """Entries of results.json for a run of these rows, which may be without the method's columns."""
        return {}

    @classmethod
    def draw(cls, history: Sequence[Mapping[str, float]], folder: Path) -> None:
        """Draw the method's columns, if there are any, into files of the run's folder.

        Raises:
            ImportError: what draws is not installed.
        """

    def compact(self) -> nn.Module | None:
        """A new, smaller network that stands for the trained one, which the trainer measures after `after_epoch`; its
        accuracy is then the run's. None: there is no other than the trained one.
        """
        return None

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and tensors that a resumed run needs."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume where `state_dict` was taken."""


def example_image(model: nn.Module, size: Sequence[int]) -> Tensor:
    """One image of zeros, [1, C, H, W], for this model."""
    parameter = next(model.parameters())
    return torch.zeros(1, *size, device=parameter.device, dtype=parameter.dtype)


def timed(device: torch.device, work: Callable[[], T]) -> tuple[T, float]:
    """What ``work`` returns, and the seconds until the device has done it."""
    wait_for(device)
    start = time.perf_counter()
    result = work()
    wait_for(device)
    return result, time.perf_counter() - start


def wait_for(device: torch.device) -> None:
    """Return when the device has done its work; before a clock is read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
