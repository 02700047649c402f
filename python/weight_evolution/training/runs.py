"""Training all seeds of a configuration into a folder: checkpoints, logs, results."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..extras import install
from .arguments import option, positive_int
from .checkpoint import read_checkpoint
from .config import TrainingConfig
from .data import Dataset
from .errors import UserError, user_errors
from .logs import LOG_FORMATS, TensorBoardLog, to_json, write_log, write_text
from .methods import METHODS
from .parallel import ALONE, Ranks
from .progress import bar
from .trainer import Trainer, headline_accuracy

CHECKPOINT = "checkpoint.pt"
_EMA = "last_epoch_ema_test_accuracy"


@dataclass(frozen=True)
class OutputOptions:
    """Where and how results are written; none of it changes them."""

    folder: Path = option(Path("runs"), flag="output", type=Path, metavar="DIR")
    checkpoint_every: int = option(1, "N epochs", type=positive_int, metavar="N")
    resume: bool = option(
        False,
        "continue from the checkpoints in --output; with more --epochs than before, what is left follows the schedules "
        "of the new number (fractions of the epochs are taken of it, --lr-milestones and --milestones stay)",
    )
    overwrite: bool = option(False, "start anew where checkpoints exist")
    stop_after: int | None = option(None, "stop after epoch N, to --resume later", type=positive_int, metavar="N")
    """Of all epochs of each seed."""
    log: str = option("csv", choices=LOG_FORMATS)
    tensorboard: bool = option(False, "also write TensorBoard events")
    progress: bool = False
    """Show a bar for each epoch."""


def train_seeds(
    config: TrainingConfig,
    seeds: Sequence[int],
    dataset: Dataset,
    device: torch.device,
    output: OutputOptions,
    say: Callable[[str], None],
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Train each seed under ``folder/seed-N``; returns and writes (results.json) the summary.

    Of several ranks the first alone reads and writes files.

    Raises:
        UserError: the folder holds other results, or a checkpoint does not fit.
    """
    paths = [seed_folder(output.folder, seed) / CHECKPOINT for seed in seeds]
    ranks.on_first(partial(refuse_to_overwrite, output, paths))
    dataset = dataset.to(device)
    histories: dict[int, list[dict[str, float]]] = {}
    for seed in seeds:
        trainer = Trainer(config, seed, dataset, device, ranks=ranks)
        folder = seed_folder(output.folder, seed)
        ranks.on_first(partial(make_folder, folder))
        _resume(trainer, folder / CHECKPOINT, output, say)
        save = partial(trainer.save, folder / CHECKPOINT)
        run_epochs({folder: (f"seed {seed}", trainer)}, trainer.run_epoch, save, output, say)
        if ranks.first:
            _draw(trainer, folder, say)
        histories[seed] = trainer.history
    results = summarize(config, histories, device) | ranks.described
    if ranks.first:
        write_text(output.folder / "results.json", to_json(results))
    return results


def seed_folder(folder: Path, seed: int) -> Path:
    """Where the files of one seed lie."""
    return folder / f"seed-{seed}"


def make_folder(folder: Path) -> None:
    """Create a folder and its parents.

    Raises:
        UserError: it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror or error}") from None


def refuse_to_overwrite(output: OutputOptions, paths: Sequence[Path]) -> None:
    """Raises UserError if one of these checkpoints exists, unless asked to resume or overwrite."""
    if output.resume or output.overwrite:
        return
    for path in paths:
        if path.exists():
            raise UserError(f"{path} exists; pass --resume to continue it, --overwrite, or another --output")


def summarize(
    config: TrainingConfig, histories: Mapping[int, Sequence[Mapping[str, float]]], device: torch.device
) -> dict[str, Any]:
    """Accuracies of the last epoch, which is the result; the best epoch's, chosen on the test images, stands apart.

    Where a method makes a compact network, they are that network's.
    """
    runs: list[dict[str, Any]] = []
    for seed, history in histories.items():
        accuracies = [headline_accuracy(row) for row in history]
        last = history[-1]
        runs.append(
            {
                "seed": seed,
                "epochs": len(history),
                "last_epoch_test_accuracy": accuracies[-1],
                "best_epoch_test_accuracy": max(accuracies),
                "inferior_filters": last.get("inferior_filters"),
                "filters": last.get("filters"),
                "train_seconds": sum(row["train_seconds"] for row in history),
            }
            | ({_EMA: last["ema_test_accuracy"]} if "ema_test_accuracy" in last else {})
            | {key: value for method in METHODS.values() for key, value in method.summarize(history).items()}
        )
    last_accuracies = [run["last_epoch_test_accuracy"] for run in runs]
    averages = [run[_EMA] for run in runs if _EMA in run]
    return {
        "config": config.to_dict(),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **mean_and_deviation("last_epoch_test_accuracy", last_accuracies),
        **(mean_and_deviation(_EMA, averages) if averages else {}),
        "runs": runs,
    }


def mean_and_deviation(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """Over the seeds, as entries of results.json; one seed has no deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {f"{name}_mean": statistics.fmean(values), f"{name}_std": deviation}


def load(trainer: Trainer, state: Mapping[str, Any], path: Path) -> None:
    """Resume; raises UserError, with the path, if the state does not fit."""
    with user_errors(f"{path}: ", UserError):
        trainer.load_state_dict(state)


def resumed(trainer: Trainer, seed: int) -> str:
    """What is said of a run that was resumed."""
    line = f"seed {seed}: resumed after {trainer.epoch} of {trainer.config.epochs} epochs"
    if trainer.extended_from is None:
        return line
    return f"{line}; it was to have {trainer.extended_from}: what is left follows the schedules of the new number"


def _resume(trainer: Trainer, path: Path, output: OutputOptions, say: Callable[[str], None]) -> None:
    if not output.resume:
        return
    state = trainer.ranks.on_first(lambda: read_checkpoint(path) if path.exists() else None)
    if state is None:
        say(f"seed {trainer.seed}: no checkpoint at {path}, starting from the first epoch")
        return
    load(trainer, state, path)
    say(resumed(trainer, trainer.seed))


def run_epochs(
    trainers: Mapping[Path, tuple[str, Trainer]],
    run_epoch: Callable[[], object],
    save: Callable[[], None],
    output: OutputOptions,
    say: Callable[[str], None],
) -> None:
    """Train to the last epoch of this run, with checkpoints, and the logs of each trainer in its folder.

    Of ranks that train together the first writes and says.

    Args:
        trainers: folder -> name and trainer; all are at the same epoch.
        run_epoch: trains all of them for an epoch.
        save: writes their checkpoints.
        output: how often, and which logs.
        say: is told of each epoch.
    """
    first = next(trainer for _, trainer in trainers.values())
    if output.progress:
        for name, trainer in trainers.values():
            images = len(trainer.dataset.train_images)
            trainer.watch = bar(name, trainer.config.epochs, images, trainer.ranks.count)
    written = trainers if first.ranks.first else {}
    end = first.config.epochs if output.stop_after is None else min(first.config.epochs, output.stop_after)
    with ExitStack() as stack:
        boards = {
            folder: stack.enter_context(closing(TensorBoardLog(folder / "tensorboard", first.epoch)))
            for folder in written
            if output.tensorboard
        }
        while first.epoch < end:
            run_epoch()
            if first.epoch % output.checkpoint_every == 0 or first.epoch == end:
                save()
            for folder, (name, trainer) in written.items():
                write_log(trainer.history, folder / f"log.{output.log}")
                if folder in boards:
                    boards[folder].write(trainer.history[-1])
                say(_epoch_line(trainer, trainer.history[-1], name))


def _draw(trainer: Trainer, folder: Path, say: Callable[[str], None]) -> None:
    try:
        for method in METHODS.values():
            method.draw(trainer.history, folder)
    except ImportError as error:
        say(f"no picture of the log is drawn: it needs {error.name}; {install('train')}")


def _epoch_line(trainer: Trainer, row: Mapping[str, float], name: str) -> str:
    """What is said of an epoch of the run of this name."""
    parts = [
        f"{name}  epoch {trainer.epoch}/{trainer.config.epochs}",
        f"loss {row['train_loss']:.4f}",
        f"train {row['train_accuracy']:.2f}%",
        f"test {row['test_accuracy']:.2f}%",
    ]
    if "ema_test_accuracy" in row:
        parts.append(f"ema {row['ema_test_accuracy']:.2f}%")
    if "inferior_filters" in row:
        parts.append(f"inferior {row['inferior_filters']}/{row['filters']}")
    for method in METHODS.values():
        parts += method.describe(row)
    return "  ".join([*parts, f"{row['train_seconds']:.1f} s"])
