import csv
import json
import statistics
from functools import partial
from pathlib import Path

import pytest
import torch

from experiments import demo_learning_rates
from weight_evolution import UnitReactivation, WeightEvolution
from weight_evolution.training import cli
from weight_evolution.training.demo import RandomLabels, command, intervals, learning_rates, random_labels, stationary
from weight_evolution.training.demo.random_labels import train_on_random_labels
from weight_evolution.training.demo.runs import Run, run_all

CPU = torch.device("cpu")
QUICK = RandomLabels(tasks=3, epochs=2, images=60, batch_size=20)
# Each of two imports PyTorch and the trainer.
several_processes = pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])


@pytest.fixture(autouse=True)
def few_digits(digits, monkeypatch):
    for module in (random_labels, stationary):
        monkeypatch.setattr(module, "load_data", lambda name: digits)


def train(method="baseline", lr=0.01, seed=0, options=QUICK):
    return train_on_random_labels(options, "row", method, lr, seed, CPU)


def without_times(run):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in run.history]


def test_end_to_end(tmp_path, capsys):
    arguments = ["--seeds", "0", "1", "--tasks", "2", "--task-epochs", "1", "--epochs", "3", "--batch-size", "32"]
    assert cli.main(["demo", *arguments, "--quiet", "--device", "cpu", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    lines = printed.out.splitlines()
    for row, (_, lr) in command.ROWS.items():
        assert sum(line.startswith(f"{row} ") and f" {lr:g} " in line for line in lines) >= 1
    assert printed.out.count("95% interval -") + printed.out.count("95% interval +") == len(command.ROWS) - 1 + 2
    assert all(f"{lr:g}" in printed.out for lr in learning_rates.GRID)
    results = json.loads((tmp_path / "results.json").read_text())
    runs = results["random_labels"]["runs"]
    assert [(run["method"], run["seed"]) for run in runs] == [(row, seed) for seed in (0, 1) for row in command.ROWS]
    ordinary = results["stationary"]["runs"]
    methods = list(stationary.METHODS)
    assert [(run["method"], run["seed"]) for run in ordinary] == [(name, seed) for seed in (0, 1) for name in methods]
    with (tmp_path / "tasks.csv").open(newline="") as file:
        tasks = list(csv.DictReader(file))
    assert len(tasks) == len(command.ROWS) * 2 * 2
    assert {row["units"] for row in tasks} == {"128"}
    second = [float(row["accuracy"]) for row in tasks if row["method"] == "baseline" and row["task"] == "1"]
    assert [run["accuracy_of_last_half"] for run in runs if run["method"] == "baseline"] == second
    with (tmp_path / "epochs.csv").open(newline="") as file:
        epochs = list(csv.DictReader(file))
    assert len(epochs) == 3 * 2 * 3
    # The first epoch, before any evolution or reactivation, is the same for all methods.
    assert len({row["test_loss"] for row in epochs if row["seed"] == "1" and row["epoch"] == "0"}) == 1
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "summary.txt").read_text().strip() in printed.out


@pytest.mark.parametrize("method", random_labels.METHODS)
def test_random_labels_are_a_function_of_seed_and_method(method):
    run = train(method)
    assert [row["task"] for row in run.history] == [0, 1, 2]
    assert without_times(run) == without_times(train(method)) != without_times(train(method, seed=1))


def test_accuracy_is_of_batches_before_the_network_learns_from_them():
    still = train(lr=1e-30, options=RandomLabels(tasks=1, epochs=2, images=80, batch_size=20))
    by_rote = train(lr=0.01, options=RandomLabels(tasks=1, epochs=60, images=20, batch_size=20))
    assert still.last("accuracy") == pytest.approx(10, abs=8)
    assert 50 < by_rote.last("accuracy") < 100


def test_dead_units_are_counted_and_revived():
    """At a learning rate that kills units."""
    options = RandomLabels(tasks=2, epochs=15, images=80, batch_size=20)
    sick, revived = (train(method, lr=0.1, options=options) for method in ("baseline", "reactivation"))
    assert sick.last("units") == 128
    assert sick.last("dead_units") > 20 > revived.last("dead_units")


def test_methods_act_once_per_epoch(monkeypatch):
    calls = []
    step = WeightEvolution.step
    monkeypatch.setattr(WeightEvolution, "step", lambda self: calls.append(self.base_rates["linear"]) or step(self))
    train("weight evolution")
    assert calls == [0.2] * 6
    act = UnitReactivation._act
    options = []
    monkeypatch.setattr(
        UnitReactivation,
        "_act",
        lambda self: options.append((self.every, self.scale, self.optimizer_state)) or act(self),
    )
    train("reactivation")
    train("ReDo")
    assert options == [(3, "layer", "fill")] * 6 + [(3, "initial", "reset")] * 6


def test_the_stationary_part_trains_as_the_command_line_does(digits):
    options = stationary.Stationary(epochs=3, batch_size=32)
    run = stationary.train_on_digits(options, "weight evolution", 1, CPU)
    assert len(run.history) == 3
    assert ["evolution_seconds" in row for row in run.history] == [True, True, False]
    run = stationary.train_on_digits(options, "reactivation", 1, CPU)
    assert all("reactivation_dead" in row for row in run.history)


def test_learning_rates_are_of_the_grid_and_of_other_seeds():
    assert set(learning_rates.CHOSEN) == set(random_labels.METHODS)
    assert set(learning_rates.CHOSEN.values()) <= set(learning_rates.GRID)
    assert not set(learning_rates.TUNING_SEEDS) & set(command.DemoOptions(Path()).seeds)


def test_the_best_learning_rate_is_named(capsys):
    assert (
        demo_learning_rates.main(
            ["--seeds", "7", "--methods", "baseline", "--rates", "1e-9", "0.01", "--tasks", "2", "--task-epochs", "5"]
        )
        == 0
    )
    assert capsys.readouterr().out.splitlines()[-2].endswith("| 0.01 |")


@several_processes
def test_runs_come_in_the_order_of_the_jobs(processes):
    ticks = []
    jobs = [partial(Run, name, seed, [{"value": seed}]) for seed in range(3) for name in ("a", "b")]
    runs = run_all(jobs, processes, lambda: ticks.append(1))
    assert [(run.method, run.seed) for run in runs] == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert len(ticks) == 6


@several_processes
def test_an_error_of_a_run_is_raised(processes):
    with pytest.raises(ZeroDivisionError):
        run_all([partial(divmod, 1, 0)], processes, lambda: None)


def test_the_last_half():
    rows = [{"accuracy": value} for value in (1.0, 2.0, 3.0, 4.0, 5.0)]
    assert Run("", 0, rows).last_half("accuracy") == 4.5
    assert Run("", 0, rows[:4]).last_half("accuracy") == 3.5
    assert Run("", 0, rows[:1]).last_half("accuracy") == 1
    assert Run("", 0, [{"revived": 2}, {}, {"revived": 1}]).total("revived") == 3


def test_intervals():
    values = [1.0, 2.0, 4.0]
    assert intervals.half_width(values) == pytest.approx(4.303 * statistics.stdev(values) / 3**0.5)
    assert intervals.with_interval(values, 1) == "2.3 +- 3.8"
    assert intervals.with_interval([2.0], 1) == "2.0"


def test_comparison_does_not_call_noise_a_gain():
    def compared(*gaps):
        runs = [Run("baseline", seed, [{"x": 90.0 + seed}]) for seed in range(len(gaps))]
        runs += [Run("other", seed, [{"x": 90.0 + seed + gap}]) for seed, gap in enumerate(gaps)]
        return intervals.comparison(runs, "other", "baseline", lambda run: run.last("x"))

    assert "no difference beyond the noise" in compared(1.0, -0.5, 0.6)
    assert "other: +1.00 points against baseline" in compared(1.0, 1.1, 0.9)
    assert "beyond the noise of these seeds" in compared(1.0, 1.1, 0.9)
    assert "one seed says nothing" in compared(1.0)
