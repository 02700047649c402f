"""Low-rank projection against its rivals at equal budgets: trains, prints and writes a table.

    python experiments/low_rank.py [--data fashion-mnist] [--output DIR]

Writes table.md and results.json to the output folder; runs found there are not trained again. All rows of a seed start
from the same weights and train on the same batches. The recipe is that of the demo, chosen there by the baseline alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from weight_evolution import LowRankProjection, __version__
from weight_evolution.low_rank import count_macs
from weight_evolution.training import UserError
from weight_evolution.training.arguments import (
    fraction,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
)
from weight_evolution.training.config import TrainingConfig, first_difference
from weight_evolution.training.data import Dataset, load_data
from weight_evolution.training.demo import DemoOptions
from weight_evolution.training.logs import to_json, write_text
from weight_evolution.training.runs import make_folder
from weight_evolution.training.trainer import Trainer, evaluate

BASELINE, TRUNCATED, FINE_TUNED = "baseline", "baseline, truncated", "truncated, then fine-tuned"
VARIANTS = {
    "projection, no energy transfer": {"energy_transfer": False, "rectify": True},
    "projection, no rectification": {"energy_transfer": True, "rectify": False},
    "projection with both": {"energy_transfer": True, "rectify": True},
}
ROWS = (BASELINE, TRUNCATED, FINE_TUNED, *VARIANTS)

_DEMO = DemoOptions(Path())
_DATA = {
    "digits": {"model": _DEMO.model, "epochs": _DEMO.epochs, "batch_size": _DEMO.batch_size},
    "fashion-mnist": {"model": "resnet8", "epochs": 10, "batch_size": 128},
}
_WEIGHT_DECAY = {"digits": _DEMO.weight_decay, "fashion-mnist": 5e-4}


@dataclass(frozen=True)
class Options:
    """What a run depends on, beside its seed and method."""

    data: str
    model: str
    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    prune_ratio: float
    fine_tune_epochs: int
    """Of the epochs; those before train the network that is truncated, with a whole schedule of their own."""
    fine_tune_lr: float
    quick: bool


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment; returns the exit status."""
    given = _parser().parse_args(arguments)
    if given.threads is not None:
        torch.set_num_threads(given.threads)
    device = torch.device("cuda" if given.device == "auto" and torch.cuda.is_available() else "cpu")
    try:
        options = _options(given)
        folder = given.output or Path(f"low-rank-{options.data}")
        summary = run(options, [0] if given.quick else given.seeds, folder, device)
    except UserError as error:
        print(f"low_rank.py: error: {error}", file=sys.stderr)
        return 2
    print(summary)
    return 0


def run(options: Options, seeds: Sequence[int], folder: Path, device: torch.device) -> str:
    """Train what is missing in ``folder``; returns the table and writes it there.

    Raises:
        UserError: the folder holds runs of other options, or the data set is missing.
    """
    dataset = load_data(options.data)
    if options.quick:
        dataset = replace(dataset, train_images=dataset.train_images[:96], train_labels=dataset.train_labels[:96])
    dataset = dataset.to(device)
    make_folder(folder / "runs")
    done: dict[str, list[dict[str, Any]]] = {row: [] for row in ROWS}
    for seed in seeds:
        for name in (BASELINE, FINE_TUNED, *VARIANTS):
            path = folder / "runs" / f"{name.replace(', ', '-').replace(' ', '-')}-seed-{seed}.json"
            if path.exists():
                results = _read(path, options)
            else:
                print(f"seed {seed}: {name}", flush=True)
                results = _train(name, options, seed, dataset, device)
                write_text(path, to_json({"options": asdict(options), "results": results}))
            for row, result in results.items():
                done[row].append({"seed": seed, **result})
    rows = [_row(row, done[row]) for row in ROWS]
    table = _table(options, seeds, rows)
    write_text(folder / "table.md", table)
    written = {
        "version": __version__,
        "torch": torch.__version__,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "options": asdict(options),
        "rows": rows,
    }
    write_text(folder / "results.json", to_json(written))
    return f"{table}\nwritten to {folder}: table.md, results.json"


def _train(
    name: str, options: Options, seed: int, dataset: Dataset, device: torch.device
) -> dict[str, dict[str, float]]:
    """Row of the table -> result; the baseline's run gives two."""
    start = time.perf_counter()
    if name == BASELINE:
        trainer = _finish(Trainer(_config(options), seed, dataset, device))
        results = {BASELINE: trainer.model, TRUNCATED: _truncate(trainer.model, options)}
    elif name == FINE_TUNED:
        first = replace(_config(options), epochs=options.epochs - options.fine_tune_epochs)
        truncated = _truncate(_finish(Trainer(first, seed, dataset, device)).model, options)
        second = replace(_config(options), epochs=options.fine_tune_epochs, lr=options.fine_tune_lr)
        results = {FINE_TUNED: _finish(Trainer(second, seed, dataset, device, truncated)).model}
    else:
        low_rank = {
            "prune_ratio": options.prune_ratio,
            "mac_budget": None,
            "every_iterations": None,
            "optimizer_state": "keep",
            **VARIANTS[name],
        }
        config = replace(_config(options), method="low-rank", method_options={"low-rank": low_rank})
        compact = _finish(Trainer(config, seed, dataset, device)).methods["low-rank"].compact()
        assert compact is not None
        results = {name: compact}
    seconds = time.perf_counter() - start
    return {
        row: {**_measure(model, dataset), "epochs": options.epochs, "seconds": seconds}
        for row, model in results.items()
    }


def _finish(trainer: Trainer) -> Trainer:
    while not trainer.done:
        trainer.run_epoch()
    return trainer


def _truncate(model: nn.Module, options: Options) -> nn.Module:
    """Best approximation of the weights themselves, as one truncates without this method."""
    return LowRankProjection(model, prune_ratio=options.prune_ratio, rectify_batch_norm=False).compact()


def _measure(model: nn.Module, dataset: Dataset) -> dict[str, float]:
    image = torch.zeros(1, *dataset.train_images.shape[1:], device=dataset.train_images.device)
    return {
        "test_accuracy": evaluate(model, dataset)[1],
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "macs": count_macs(model, (image,))[0],
    }


def _config(options: Options) -> TrainingConfig:
    return TrainingConfig(
        model=options.model,
        data=options.data,
        epochs=options.epochs,
        batch_size=options.batch_size,
        lr=options.lr,
        weight_decay=options.weight_decay,
    )


def _row(method: str, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    accuracies = [run["test_accuracy"] for run in runs]
    return {
        "method": method,
        "epochs": runs[0]["epochs"],
        "seeds": [run["seed"] for run in runs],
        "test_accuracies": accuracies,
        "test_accuracy_mean": statistics.fmean(accuracies),
        "test_accuracy_std": statistics.stdev(accuracies) if len(runs) > 1 else None,
        "parameters": runs[0]["parameters"],
        "macs": runs[0]["macs"],
        "seconds": [run["seconds"] for run in runs],
    }


def _table(options: Options, seeds: Sequence[int], rows: Sequence[dict[str, Any]]) -> str:
    parameters, macs = rows[0]["parameters"], rows[0]["macs"]
    lines = [
        f"{options.model} on {options.data}, prune ratio {options.prune_ratio}, {options.epochs} epochs in every row, "
        f"batch {options.batch_size}, lr {options.lr}, weight decay {options.weight_decay}, "
        f"seeds {' '.join(map(str, seeds))}.",
        f"Fine-tuned: {options.epochs - options.fine_tune_epochs} epochs, truncation, then "
        f"{options.fine_tune_epochs} epochs of the compact network at lr {options.fine_tune_lr}.",
        "Accuracy: test set, last epoch, of the network whose size stands beside it; mean +- standard deviation.",
        "",
        "| method | test accuracy % | parameters | MACs |",
        "| --- | --- | --- | --- |",
    ]
    for row in rows:
        deviation = "" if row["test_accuracy_std"] is None else f" +- {row['test_accuracy_std']:.2f}"
        lines.append(
            f"| {row['method']} | {row['test_accuracy_mean']:.2f}{deviation} "
            f"| {row['parameters']:,} ({row['parameters'] / parameters:.1%}) "
            f"| {row['macs']:,} ({row['macs'] / macs:.1%}) |"
        )
    return "\n".join(lines) + "\n"


def _read(path: Path, options: Options) -> dict[str, dict[str, Any]]:
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        there, results = saved["options"], dict(saved["results"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a run of this experiment ({error!r}); remove it") from None
    if difference := first_difference(there, asdict(options)):
        raise UserError(f"{path} is of another experiment: {difference}; pass another --output")
    return results


def _options(given: argparse.Namespace) -> Options:
    base: dict[str, Any] = dict(_DATA[given.data])
    if given.quick:
        base |= {"model": "resnet8", "epochs": 2}
    for name in base:
        if getattr(given, name) is not None:
            base[name] = getattr(given, name)
    fine_tune_epochs = base["epochs"] // 2 if given.fine_tune_epochs is None else given.fine_tune_epochs
    if not 0 < fine_tune_epochs < base["epochs"]:
        raise UserError(f"--fine-tune-epochs must be in [1, {base['epochs'] - 1}], got {fine_tune_epochs}")
    if given.prune_ratio == 1:
        raise UserError("--prune-ratio must be below 1, got 1.0")
    weight_decay = _WEIGHT_DECAY[given.data] if given.weight_decay is None else given.weight_decay
    return Options(
        data=given.data,
        lr=given.lr,
        weight_decay=weight_decay,
        prune_ratio=given.prune_ratio,
        fine_tune_epochs=fine_tune_epochs,
        fine_tune_lr=given.lr / 10 if given.fine_tune_lr is None else given.fine_tune_lr,
        quick=given.quick,
        **base,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", choices=tuple(_DATA), default="digits")
    parser.add_argument("--output", type=Path, default=None, metavar="DIR", help="default low-rank-DATA")
    parser.add_argument("--seeds", type=non_negative_int, nargs="+", default=[0, 1, 2], metavar="N")
    parser.add_argument("--prune-ratio", type=fraction, default=0.6)
    parser.add_argument("--model", help="default resnet20 for digits, resnet8 for fashion-mnist")
    parser.add_argument("--epochs", type=positive_int, help="default 40 for digits, 10 for fashion-mnist")
    parser.add_argument("--batch-size", type=positive_int, help="default 32 for digits, 128 for fashion-mnist")
    parser.add_argument("--lr", type=positive_float, default=_DEMO.lr)
    parser.add_argument(
        "--weight-decay", type=non_negative_float, help="default 0.01 for digits, 5e-4 for fashion-mnist"
    )
    parser.add_argument("--fine-tune-epochs", type=positive_int, metavar="E", help="default half of the epochs")
    parser.add_argument("--fine-tune-lr", type=positive_float, metavar="LR", help="default a tenth of --lr")
    parser.add_argument("--quick", action="store_true", help="one seed, two epochs, 96 images: only to see it work")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--threads", type=positive_int, metavar="N")
    return parser


if __name__ == "__main__":
    sys.exit(main())
