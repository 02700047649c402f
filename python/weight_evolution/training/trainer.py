"""One network in training."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from weight_evolution.low_rank import count_macs, count_parameters
from weight_evolution.measures.invalid_filters import PUBLISHED_THRESHOLDS, count_invalid_filters
from weight_evolution.sharding.local_part import reshard

from .checkpoint import FORMAT, check_model_state, save_checkpoint
from .config import TrainingConfig, completed, first_difference
from .data import Dataset, batch_sizes, training_batches
from .ema import Ema
from .errors import UserError, user_errors
from .inferior import count_inferior_filters
from .methods import Method, Training, make_methods
from .models import check_output, make_model
from .optimizers import TrainingStep, make_optimizer
from .parallel import ALONE, Ranks
from .progress import Watch, unwatched
from .randomness import seeded

# On a CPU the activations of 100 images stay in the caches: three times as fast as 1000.
_TEST_BATCH = {"cpu": 100, "cuda": 1000}


class Trainer:
    """Trains one network from one seed, epoch by epoch.

    Everything random in an epoch follows from the seed and the epoch, so on a CPU (same threads) a run resumed from
    `state_dict` is bit-equal to one that was never stopped.

    Args:
        config: the run's options.
        seed: of initialization, order of the data, augmentation and dropout.
        dataset: the data of ``config.data``.
        device: where to train.
        model: the network to train, instead of a new one of ``config.model``.
        ranks: the processes that train it together. All of them make the trainer, and call its methods.

    Raises:
        UserError: model, method, data and ranks do not fit together.
    """

    def __init__(
        self,
        config: TrainingConfig,
        seed: int,
        dataset: Dataset,
        device: torch.device,
        model: nn.Module | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        ranks.check(config, dataset)
        self.config = config
        self.ranks = ranks
        self.seed = seed
        self.device = device
        self.dataset = dataset.to(device)
        input_size = dataset.train_images.shape[1:]
        with seeded(device, "model", seed):
            made = model or make_model(config.model, dataset.in_channels, dataset.num_classes)
        self.model: nn.Module = made.to(device)
        if config.channels_last:
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        check_output(self.model, config.model, input_size, dataset.num_classes)
        self.ema = None if config.ema is None else Ema(self.model, config.ema, ranks)
        """The average of the network's weights, if there is to be one."""
        placed = ranks.place(self.model)
        self.optimizer = make_optimizer(config, self.model)
        training = Training(placed, self.optimizer, input_size, seed, ranks)
        self.methods = make_methods(config.method, config.method_options, training)
        self._iteration_hooks = self._own("after_iteration")
        self._extra_losses = self._own("extra_loss")
        self._step = TrainingStep(config, placed, self.optimizer, device)
        self.watch: Watch = unwatched
        """Sees each batch of an epoch before it is trained on."""
        self.epoch = 0
        """Epochs done."""
        self.extended_from: int | None = None
        """Epochs that a run that was resumed was to have, if it now has more."""
        self.history: list[dict[str, float]] = []
        """One row of the log per epoch."""

    @property
    def done(self) -> bool:
        """All epochs of the configuration are done."""
        return self.epoch >= self.config.epochs

    def run_epoch(self) -> dict[str, float]:
        """Train one epoch, measure, then let the methods act; returns the row for the log.

        Raises:
            UserError: the loss is not finite.
        """
        config, epoch = self.config, self.epoch
        lr = config.learning_rate(epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        start = time.perf_counter()
        with seeded(self.device, "epoch", self.seed, epoch, *self.ranks.randomness()):
            train_loss, train_accuracy = self._train(epoch)
            train_seconds = time.perf_counter() - start
            self.ranks.share_buffers(self.model)
            test_loss, test_accuracy = self.evaluate()
            row: dict[str, float] = {
                "epoch": epoch,
                "lr": lr,
                "train_loss": train_loss,
                "train_accuracy": train_accuracy,
                "test_loss": test_loss,
                "test_accuracy": test_accuracy,
                "train_seconds": train_seconds,
            }
            row |= self._measure_ema()
            row |= self._count_inferior()
            for method in self.methods.values():
                row |= method.after_epoch(epoch)
                if (compact := method.compact()) is not None:
                    row |= self._measure_compact(compact)
        self.history.append(row)
        self.epoch += 1
        return row

    def evaluate(self) -> tuple[float, float]:
        """Mean loss and accuracy in percent on the test images."""
        return evaluate(self.model, self.dataset, self.ranks)

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs; tensors and plain values. Where the network is spread over ranks, the
        first one's has its tensors.
        """
        reshard(self.model)
        state = {
            "format": FORMAT,
            "config": self.config.to_dict(),
            "seed": self.seed,
            "in_channels": self.dataset.in_channels,
            "num_classes": self.dataset.num_classes,
            "epoch": self.epoch,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self._step.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "methods": {name: method.state_dict() for name, method in self.methods.items()},
            "history": [dict(row) for row in self.history],
        }
        return self.ranks.whole_state(state)

    def save(self, path: Path) -> None:
        """Write `state_dict` to a file, on the first rank."""
        state = self.state_dict()
        if self.ranks.first:
            save_checkpoint(state, path)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume where `state_dict` was taken.

        With more epochs than the state's run was to have, what is left follows the schedules of the new number.

        Raises:
            UserError: the state is of another configuration (model, data, method, ...), of a run of more epochs or of
                another seed; nothing is changed.
        """
        there = {**completed(state["config"]), "seed": state["seed"]}
        epochs = there.get("epochs")
        if not isinstance(epochs, int):
            raise UserError(f"the checkpoint's configuration is damaged: epochs is {epochs!r}")
        if epochs > self.config.epochs:
            raise UserError(
                f"the checkpoint is of a run of {epochs} epochs, not {self.config.epochs}; pass --epochs {epochs}, or "
                "more to extend the run; --stop-after ends one earlier"
            )
        extended = epochs < self.config.epochs
        if extended:
            there |= self._extended(there)
        if difference := first_difference(there, {**self.config.to_dict(), "seed": self.seed}):
            raise UserError(f"the checkpoint is of another run: {difference}")
        check_model_state(state["model"], self.model)
        if self.ema is not None:
            self.ema.check(state["ema"])
        with user_errors("the checkpoint does not fit this run: ", KeyError, TypeError, ValueError, RuntimeError):
            for name, method in self.methods.items():
                method.load_state_dict(state["methods"][name])
            self.ranks.load(self.model, state["model"])
            self.ranks.load_optimizer(self.optimizer, state["optimizer"])
            self._step.load_state_dict(state.get("step", {}))  # checkpoints of earlier versions are without
            if self.ema is not None:
                self.ema.load_state_dict(state["ema"])
        self.extended_from = epochs if extended else None
        self.epoch = state["epoch"]
        self.history = [dict(row) for row in state["history"]]

    def _extended(self, there: Mapping[str, Any]) -> dict[str, Any]:
        """What of a configuration changes with the number of epochs, as it is here."""
        config = self.config
        options = {name: dict(entries) for name, entries in there["method_options"].items()}
        for name, method in self.methods.items():
            for key in method.options_of_epochs:
                options.setdefault(name, {})[key] = config.method_options[name][key]
        return {"epochs": config.epochs, "method_options": options}

    def _own(self, hook: str) -> list[Callable[..., Any]]:
        """A hook of the methods that have one of their own."""
        methods = self.methods.values()
        return [getattr(method, hook) for method in methods if getattr(type(method), hook) is not getattr(Method, hook)]

    def _train(self, epoch: int) -> tuple[float, float]:
        config = self.config
        self.model.train()
        mean, deviation = self.dataset.statistics
        totals = torch.zeros(2, dtype=torch.float64, device=self.device)
        count = len(self.dataset.train_images)
        sizes = batch_sizes(count, config.batch_size, self.ranks.count)
        batches = training_batches(self.dataset, config.batch_size, self.seed, epoch, config.augment, self.ranks)
        with closing(self.watch(batches, epoch)) as watched:
            for size, (images, targets) in zip(sizes, watched, strict=True):
                totals += self._train_on((images.float() - mean) / deviation, targets, self.ranks.weight(size))
        loss_mean, accuracy = _means(self.ranks.sum(totals), count)
        if not math.isfinite(loss_mean):
            raise UserError(
                f"the training loss became {loss_mean} in epoch {epoch} (seed {self.seed}); lower --lr, or add "
                "--warmup-epochs; checkpoints of earlier epochs are untouched"
            )
        return loss_mean, accuracy

    def _train_on(self, images: Tensor, targets: Tensor, weight: float) -> Tensor:
        """One step, and what follows it: the methods, then the average; returns `_totals`."""
        logits, loss = self._step(images, targets, self._extra_losses, weight)
        for hook in self._iteration_hooks:
            hook()
        if self.ema is not None:
            self.ema.update(self.model)
        return _totals(logits, loss, targets)

    def _measure_ema(self) -> dict[str, float]:
        if self.ema is None:
            return {}
        self.ranks.share_buffers(self.ema.model)
        loss, accuracy = evaluate(self.ema.model, self.dataset, self.ranks)
        return {"ema_test_loss": loss, "ema_test_accuracy": accuracy}

    def _measure_compact(self, compact: nn.Module) -> dict[str, float]:
        loss, accuracy = evaluate(compact, self.dataset, self.ranks)
        image = (torch.zeros(1, *self.dataset.train_images.shape[1:], device=self.device),)
        return {
            "compact_test_loss": loss,
            "compact_test_accuracy": accuracy,
            "parameters": count_parameters(self.model),
            "compact_parameters": count_parameters(compact),
            "macs": count_macs(self.model, image)[0],
            "compact_macs": count_macs(compact, image)[0],
        }

    def _count_inferior(self) -> dict[str, float]:
        if not any(isinstance(module, nn.modules.conv._ConvNd) for module in self.model.modules()):
            return {}
        model = self.ranks.whole_model(self.model)
        if model is None:
            return {}
        found = count_inferior_filters(model)
        invalid = {f"invalid_filters_{t:g}": count_invalid_filters(model, t)[0] for t in PUBLISHED_THRESHOLDS}
        return {"inferior_filters": found.inferior, **invalid, "filters": found.filters}


def evaluate(model: nn.Module, dataset: Dataset, ranks: Ranks = ALONE) -> tuple[float, float]:
    """Mean loss and accuracy in percent on the test images, in eval mode, which the model keeps.

    Each rank sees a part of them.
    """
    model.eval()
    images, labels = dataset.test_images, dataset.test_labels
    size = _TEST_BATCH[images.device.type]
    mean, deviation = dataset.statistics
    totals = torch.zeros(2, dtype=torch.float64, device=images.device)
    with torch.no_grad():
        for part in ranks.test_parts(len(images), size):
            batch, targets = images[part], labels[part]
            logits = model((batch.float() - mean) / deviation)
            totals += _totals(logits, functional.cross_entropy(logits, targets), targets)
    return _means(ranks.sum(totals), len(images))


def headline_accuracy(row: Mapping[str, float]) -> float:
    """The accuracy that counts in a row of the log: of the compact network where there is one."""
    return row.get("compact_test_accuracy", row["test_accuracy"])


def _totals(logits: Tensor, loss: Tensor, targets: Tensor) -> Tensor:
    """Sum of losses and number of correct answers, without waiting for the device."""
    return torch.stack([loss.double() * len(targets), (logits.argmax(1) == targets).sum().double()])


def _means(totals: Tensor, count: int) -> tuple[float, float]:
    loss, correct = totals.tolist()
    return loss / count, 100.0 * correct / count
