"""The demo: baseline against weight evolution with both crossover rules, on scikit-learn's digits."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from we_kernels import __version__
from weight_evolution.tables import table

from .config import TrainingConfig
from .data import Dataset, load_data
from .demo_run import Run
from .errors import UserError
from .inferior import count_inferior_filters
from .logs import to_json, write_log, write_text
from .methods.evolution import Options, scaled_schedule
from .runs import make_folder
from .trainer import Trainer

METHODS = {"baseline": None, "evolution, paper": "paper", "evolution, released": "released"}
"""What the table calls it -> the crossover rule."""

# Two-sided 95% points of Student's t, by degrees of freedom.
_T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


@dataclass(frozen=True)
class DemoOptions:
    """The defaults end in three minutes on one core with AVX-512, in six on one with AVX2.

    The weight decay was chosen by the baseline alone: of 0.0005, 0.01, 0.02 and 0.03 the one at which its accuracy on
    the test images was best in 40 epochs. (The published 0.0005 belongs to 78,200 steps; over these 870 it hardly
    shrinks a weight.)
    """

    folder: Path
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = 30
    model: str = "resnet20"
    batch_size: int = 32
    lr: float = 0.1
    weight_decay: float = 0.01


def run_demo(options: DemoOptions, device: torch.device, quiet: bool = False) -> str:
    """Train every method from every seed, write the results to the folder and return the readable summary.

    ``quiet``: without a progress bar.

    Raises:
        UserError: a package is missing, or the folder cannot be made.
    """
    try:
        from tqdm import tqdm

        from .plots import plot_demo
    except ImportError as error:
        raise UserError(f"the demo needs {error.name}: pip install 'weight-evolution[train]'") from None
    dataset = load_data("digits").to(device)
    make_folder(options.folder)
    start = time.perf_counter()
    runs: list[Run] = []
    with tqdm(total=len(METHODS) * len(options.seeds) * options.epochs, unit="epoch", disable=quiet) as bar:
        for seed in options.seeds:
            for method in METHODS:
                bar.set_description(f"seed {seed}, {method}")
                runs.append(_run(options, method, seed, dataset, device, lambda: bar.update()))
    seconds = time.perf_counter() - start

    summary = describe(options, runs, seconds, dataset, device)
    write_text(options.folder / "results.json", to_json(results(options, runs, seconds, device)))
    rows = [{"method": run.method, "seed": run.seed, **row} for run in runs for row in run.history]
    write_log(rows, options.folder / "epochs.csv")
    write_text(options.folder / "summary.txt", summary + "\n")
    plot_demo(runs, list(METHODS), options.folder / "figure.png")
    return f"{summary}\n\nwritten to {options.folder}: figure.png, summary.txt, results.json, epochs.csv"


def demo_config(options: DemoOptions, method: str) -> TrainingConfig:
    """The published rates, and the published schedules scaled to the number of epochs."""
    crossover = METHODS[method]
    evolution = Options(schedule=scaled_schedule("cifar", options.epochs), epochs=options.epochs)
    return TrainingConfig(
        model=options.model,
        data="digits",
        method="evolution" if crossover else "baseline",
        method_options={"evolution": asdict(replace(evolution, crossover=crossover))} if crossover else {},
        epochs=options.epochs,
        batch_size=options.batch_size,
        lr=options.lr,
        weight_decay=options.weight_decay,
    )


def describe(options: DemoOptions, runs: Sequence[Run], seconds: float, dataset: Dataset, device: torch.device) -> str:
    """The table and what it says."""
    schedule = scaled_schedule("cifar", options.epochs)
    rows = [("method", "test accuracy %", "best epoch %", "inferior filters", "ms/evolution", "share of training")]
    for method in METHODS:
        own = [run for run in runs if run.method == method]
        evolutions = [value for run in own for value in run.evolution_seconds]
        share = 100.0 * sum(evolutions) / (sum(evolutions) + sum(run.train_seconds for run in own))
        rows.append(
            (
                method,
                _mean_std([run.last("test_accuracy") for run in own], 2),
                _mean_std([max(row["test_accuracy"] for row in run.history) for run in own], 2),
                f"{_mean_std([run.last('inferior_filters') for run in own], 1)} of {own[0].last('filters')}",
                f"{1e3 * statistics.fmean(evolutions):.2f}" if evolutions else "-",
                f"{share:.2f}%" if evolutions else "-",
            )
        )
    head, *lines = table(rows)
    return "\n".join(
        [
            f"{options.model} on digits ({len(dataset.train_images)} training, {len(dataset.test_images)} test), "
            f"{options.epochs} epochs, seeds {', '.join(map(str, options.seeds))}: "
            f"{seconds:.0f} s on {device}, {torch.get_num_threads()} threads",
            f"SGD lr {options.lr}, Nesterov momentum 0.9, weight decay {options.weight_decay}, "
            f"batch {options.batch_size}; learning rate x0.1 at 30%, 60% and 90% of the epochs",
            f"evolution at the published rates (conv 0.2, BatchNorm 0.05, local ratio 0.1); published stages scaled to "
            f"{options.epochs} epochs: milestones {schedule['milestones']}, tau {schedule['tau']:g}",
            "",
            head,
            "-" * len(head),
            *lines,
            "",
            "test accuracy: of the last epoch, mean +- standard deviation over the seeds; best epoch is chosen on the "
            "test images, so it flatters all",
            "inferior filters: of the trained network, counted alike for all: below the 20% quantile of the network "
            "and at most 0.1 of the layer's largest",
            *(comparison(runs, method) for method in METHODS if method != "baseline"),
        ]
    )


def comparison(runs: Sequence[Run], method: str) -> str:
    """In words, the method's accuracy minus the baseline's, paired by seed, with its 95% interval (Student's t)."""
    baseline = {run.seed: run.last("test_accuracy") for run in runs if run.method == "baseline"}
    gaps = [run.last("test_accuracy") - baseline[run.seed] for run in runs if run.method == method]
    mean = statistics.fmean(gaps)
    text = f"{method}: {mean:+.2f} points against the baseline"
    if len(gaps) < 2:
        return f"{text}; one seed says nothing about the noise"
    half = _T95.get(len(gaps) - 1, 2.26) * statistics.stdev(gaps) / len(gaps) ** 0.5
    verdict = "no difference beyond the noise" if abs(mean) <= half else "beyond the noise of these seeds"
    return f"{text} (95% interval {mean - half:+.2f} to {mean + half:+.2f}, {len(gaps)} paired seeds): {verdict}"


def results(options: DemoOptions, runs: Sequence[Run], seconds: float, device: torch.device) -> dict[str, Any]:
    """All that the table was made from."""
    return {
        "version": __version__,
        "torch": torch.__version__,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "configs": {method: demo_config(options, method).to_dict() for method in METHODS},
        "runs": [
            {
                "method": run.method,
                "seed": run.seed,
                "last_epoch_test_accuracy": run.last("test_accuracy"),
                "best_epoch_test_accuracy": max(row["test_accuracy"] for row in run.history),
                "inferior_filters": run.last("inferior_filters"),
                "filters": run.last("filters"),
                "train_seconds": run.train_seconds,
                "evolution_seconds": sum(run.evolution_seconds),
                "evolutions": len(run.evolution_seconds),
                "replaced_conv_filters": sum(row.get("evolution_replaced_conv", 0) for row in run.history),
            }
            for run in runs
        ],
    }


def _run(
    options: DemoOptions,
    method: str,
    seed: int,
    dataset: Dataset,
    device: torch.device,
    tick: Callable[[], object],
) -> Run:
    trainer = Trainer(demo_config(options, method), seed, dataset, device)
    while not trainer.done:
        trainer.run_epoch()
        tick()
    importances: Mapping[str, Tensor] = count_inferior_filters(trainer.model).importances
    return Run(method, seed, trainer.history, dict(importances))


def _mean_std(values: Sequence[float], digits: int) -> str:
    mean = statistics.fmean(values)
    return f"{mean:.{digits}f} +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else f"{mean:.{digits}f}"
