"""Several networks in training side by side, that are grafted at the end of epochs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from weight_evolution import FilterGrafting

from .checkpoint import read_checkpoint
from .config import TrainingConfig
from .data import Dataset
from .errors import UserError, user_errors
from .logs import to_json, write_text
from .methods import GraftingMethod, method_names
from .methods.base import example_image, timed
from .parallel import ALONE, Ranks
from .randomness import stream_seed
from .runs import (
    CHECKPOINT,
    OutputOptions,
    load,
    make_folder,
    mean_and_deviation,
    refuse_to_overwrite,
    resumed,
    run_epochs,
    seed_folder,
    summarize,
)
from .trainer import Trainer

PREVIOUS = "previous.pt"
"""The checkpoint before the last: after a crash between the writing of two networks, all still have one of an epoch."""


class Networks:
    """The networks of one run: each a `Trainer` with its own seed and learning rate, grafted after every n-th epoch.

    Not after the last one: the networks that remain are those that were measured. All are in this process, or, with a
    process group, one on each rank; on a CPU both give the same bits. Or all are on several ranks that train them
    together.

    Args:
        config: the run's options; "grafting" is among its methods.
        seed: network 0 has it, and so starts as a run without grafting does; the others have seeds derived from it.
        dataset, device: as for `Trainer`.
        group: one rank per network.
        ranks: without ``group``, those that train each of the networks together.

    Raises:
        UserError: model, methods and data do not fit together.
    """

    def __init__(
        self,
        config: TrainingConfig,
        seed: int,
        dataset: Dataset,
        device: torch.device,
        group: dist.ProcessGroup | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        if "low-rank" in method_names(config.method):
            raise UserError("--method grafting and low-rank do not go together: a blend of two is not of low rank")
        options = config.method_options[GraftingMethod.name]
        self.config = config
        self.seed = seed
        self.device = device
        self.count: int = options["networks"]
        self._every: int = options["every"]
        self._group = group
        self.ranks = ranks
        if group is not None and dist.get_world_size(group) != self.count:
            raise UserError(f"{self.count} networks need as many ranks, torchrun started {dist.get_world_size(group)}")
        rates = options["learning_rates"] or [config.lr] * self.count
        own = range(self.count) if group is None else [dist.get_rank(group)]
        self.trainers = {
            i: Trainer(replace(config, lr=rates[i]), network_seed(seed, i), dataset, device, ranks=ranks) for i in own
        }
        """Number of a network -> its trainer; those of this process."""
        models = [trainer.model for trainer in self.trainers.values()]
        with user_errors("--method grafting: "):
            self.grafting = FilterGrafting(
                models if group is None else models[0],
                process_group=group,
                **{name: options[name] for name in ("strength", "sharpness", "level", "criterion", "bins")},
                example_inputs=example_image(models[0], dataset.train_images.shape[1:]),
            )
        for trainer in self.trainers.values():
            method = trainer.methods[GraftingMethod.name]
            assert isinstance(method, GraftingMethod)
            method.grafting = self.grafting

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return next(iter(self.trainers.values())).epoch

    def run_epoch(self) -> None:
        """Train one epoch of each network, measure, then graft; what was found is in the trainers' histories.

        Raises:
            UserError: a loss is not finite. ExchangeError: another rank was lost.
        """
        for trainer in self.trainers.values():
            trainer.run_epoch()
        if self.epoch < self.config.epochs and self.epoch % self._every == 0:
            report, seconds = timed(self.device, self.grafting.step)
            for i, trainer in self.trainers.items():
                trainer.history[-1] |= {"grafting_seconds": seconds, **GraftingMethod.columns(report, i)}

    def gather(self, own: Mapping[int, Any]) -> list[Any]:
        """Something of every network, by number, from all ranks; over a group it waits for them."""
        if self._group is None:
            return [own[i] for i in range(self.count)]
        parts: list[Any] = [None] * self.count
        dist.all_gather_object(parts, next(iter(own.values())), group=self._group)
        return parts

    def save(self, folders: Mapping[int, Path]) -> None:
        """Write the checkpoint of each network, and keep the one before it."""
        self.gather(dict.fromkeys(self.trainers))  # so that no rank is ahead by two
        for i, trainer in self.trainers.items():
            path = folders[i] / CHECKPOINT
            if self.ranks.first and path.exists():
                path.replace(folders[i] / PREVIOUS)
            trainer.save(path)

    def load(self, folders: Mapping[int, Path]) -> None:
        """Resume from the last epoch of which all networks have a checkpoint; from none, when none has any.

        Raises:
            UserError: a checkpoint is damaged or of another run, or there is no such epoch.
        """
        states = self.ranks.on_first(lambda: {i: _states(folder) for i, folder in folders.items()})
        epochs = [set(there) for there in self.gather({i: list(there) for i, there in states.items()})]
        common = set.intersection(*epochs)
        if not common:
            if any(epochs):
                raise UserError(f"the networks' checkpoints are of different epochs: {[sorted(e) for e in epochs]}")
            return
        for i, trainer in self.trainers.items():
            load(trainer, states[i][max(common)], folders[i])


def train_networks(
    config: TrainingConfig,
    seeds: Sequence[int],
    dataset: Dataset,
    device: torch.device,
    output: OutputOptions,
    say: Callable[[str], None],
    group: dist.ProcessGroup | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """As `runs.train_seeds`, of several networks each: ``folder/seed-N/network-I``.

    Over a process group, rank 0 writes results.json; each rank writes the files of its network. Of ranks that train
    together the first alone reads and writes files.

    Raises:
        UserError: the folder holds other results, or a checkpoint does not fit.
    """
    numbers = range(config.method_options[GraftingMethod.name]["networks"])
    paths = [_folder(output.folder, seed, i) / CHECKPOINT for seed in seeds for i in numbers]
    ranks.on_first(partial(refuse_to_overwrite, output, paths))
    dataset = dataset.to(device)
    histories: dict[int, list[list[dict[str, float]]]] = {}
    for seed in seeds:
        networks = Networks(config, seed, dataset, device, group, ranks)
        folders = {i: _folder(output.folder, seed, i) for i in networks.trainers}
        for folder in folders.values():
            ranks.on_first(partial(make_folder, folder))
        if output.resume:
            networks.load(folders)
            say(resumed(next(iter(networks.trainers.values())), seed))
        elif output.overwrite and ranks.first:
            for folder in folders.values():
                (folder / PREVIOUS).unlink(missing_ok=True)
                (folder / CHECKPOINT).unlink(missing_ok=True)
        trainers = {folders[i]: (f"seed {seed} network {i}", trainer) for i, trainer in networks.trainers.items()}
        run_epochs(trainers, networks.run_epoch, partial(networks.save, folders), output, say)
        histories[seed] = networks.gather({i: trainer.history for i, trainer in networks.trainers.items()})
    results = summarize_networks(config, histories, device) | ranks.described
    if ranks.first and (group is None or dist.get_rank(group) == 0):
        write_text(output.folder / "results.json", to_json(results))
    return results


def summarize_networks(
    config: TrainingConfig,
    histories: Mapping[int, Sequence[Sequence[Mapping[str, float]]]],
    device: torch.device,
) -> dict[str, Any]:
    """`summarize` of the first network, and beside it the accuracies of all and of the best.

    The first network's is the result: no test image had a say in which one that is. The best is the one with the
    highest test accuracy of the last epoch, so it is chosen on the test images.
    """
    results = summarize(config, {seed: networks[0] for seed, networks in histories.items()}, device)
    for run, networks in zip(results["runs"], histories.values(), strict=True):
        last = [history[-1]["test_accuracy"] for history in networks]
        run |= {
            "networks_last_epoch_test_accuracy": last,
            "networks_lr": config.method_options[GraftingMethod.name]["learning_rates"] or [config.lr] * len(last),
            "best_network": last.index(max(last)),
            "best_network_last_epoch_test_accuracy": max(last),
            "grafting_seconds": sum(row.get("grafting_seconds", 0.0) for row in networks[0]),
        }
    best = [run["best_network_last_epoch_test_accuracy"] for run in results["runs"]]
    return results | {
        "last_epoch_test_accuracy_of": "first network",
        "best_network_chosen_by": "test accuracy of the last epoch",
        **mean_and_deviation("best_network_last_epoch_test_accuracy", best),
    }


def network_seed(seed: int, network: int) -> int:
    """Of initialization, data order and augmentation of a network; the run's own for the first."""
    return seed if network == 0 else stream_seed("network", seed, network)


def _folder(folder: Path, seed: int, network: int) -> Path:
    return seed_folder(folder, seed) / f"network-{network}"


def _states(folder: Path) -> dict[int, dict[str, Any]]:
    """Epoch -> checkpoint."""
    paths = [path for name in (PREVIOUS, CHECKPOINT) if (path := folder / name).exists()]
    return {state["epoch"]: state for state in map(read_checkpoint, paths)}
