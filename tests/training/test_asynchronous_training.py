import csv
import json
import sys
from pathlib import Path

import pytest
import torch

from tests.training.training_runs import EPOCHS, make_config
from weight_evolution import AsynchronousUpdate, WeightEvolution, filter_overlap
from weight_evolution.training import cli
from weight_evolution.training.checkpoint import read_checkpoint, save_checkpoint
from weight_evolution.training.config import TrainingConfig
from weight_evolution.training.trainer import Trainer

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
SMALL = ["--model", "resnet8", "--batch-size", "32", "--epochs", "2", "--device", "cpu", "--quiet"]
OPTIONS = {"rate": 0.5, "select": "filters", "replacement": False, "rescale": False}


def config_of(method: str = "asynchronous", **options) -> TrainingConfig:
    every = {"asynchronous": OPTIONS | options, **make_config("evolution").method_options}
    return TrainingConfig(
        model="resnet8",
        method=method,
        method_options={name: every[name] for name in method.split("+")},
        epochs=EPOCHS,
        batch_size=32,
    )


def train(trainer: Trainer, until: int = EPOCHS) -> Trainer:
    while trainer.epoch < until:
        trainer.run_epoch()
    return trainer


def comparable(state):
    """Without times."""
    rows = [{key: value for key, value in row.items() if not key.endswith("seconds")} for row in state["history"]]
    return {**state, "history": rows}


def assert_same(a, b):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("asynchronous", {}),
        ("asynchronous", {"select": "input_channels", "replacement": True, "rescale": True}),
        ("evolution+asynchronous", {"rate": 0.3}),
    ],
)
def test_resume_is_bit_equal(digits, tmp_path, method, options):
    config = config_of(method, **options)
    whole = train(Trainer(config, 1, digits, CPU))
    save_checkpoint(train(Trainer(config, 1, digits, CPU), EPOCHS // 2).state_dict(), tmp_path / "c.pt")
    second = Trainer(config, 1, digits, CPU)
    second.load_state_dict(read_checkpoint(tmp_path / "c.pt"))
    train(second)
    assert second.methods["asynchronous"].update.step_count == 3 * EPOCHS
    assert_same(comparable(whole.state_dict()), comparable(second.state_dict()))


def test_it_is_the_hook_in_every_iteration_with_the_runs_seed(digits):
    """The trainer's run by hand: the baseline's trainer with an AsynchronousUpdate of the run's seed."""
    baseline = Trainer(make_config("baseline"), 3, digits, CPU)
    AsynchronousUpdate(baseline.optimizer, baseline.model, seed=3)
    trainer = Trainer(config_of(), 3, digits, CPU)
    assert_same(train(baseline, 2).model.state_dict(), train(trainer, 2).model.state_dict())
    other = Trainer(config_of(), 4, digits, CPU).methods["asynchronous"].update
    assert not torch.equal(
        other.selection(0)["layer3.0.conv2.weight"],
        trainer.methods["asynchronous"].update.selection(0)["layer3.0.conv2.weight"],
    )


def test_rate_one_is_the_baseline_with_overlap_in_the_log(digits):
    baseline = train(Trainer(make_config("baseline"), 0, digits, CPU), 2)
    trainer = train(Trainer(config_of(rate=1.0), 0, digits, CPU), 2)
    assert_same(baseline.model.state_dict(), trainer.model.state_dict())
    row, overlap = trainer.history[-1], filter_overlap(trainer.model)
    assert row["overlap_mean"] == pytest.approx(sum(overlap.values()) / len(overlap))
    assert {f"overlap_of_{name.removesuffix('.weight')}" for name in overlap} == {
        column for column in row if column.startswith("overlap_of_")
    }
    assert row["overlap_of_conv1"] == overlap["conv1.weight"]
    assert 0 < row["overlap_mean"] < row["overlap_maximum"] < 1


def test_evolution_follows_each_epoch_of_asynchronous_iterations(digits, monkeypatch):
    calls = []
    save, step = AsynchronousUpdate._save, WeightEvolution.step
    monkeypatch.setattr(AsynchronousUpdate, "_save", lambda self, *a: calls.append("iteration") or save(self, *a))
    monkeypatch.setattr(WeightEvolution, "step", lambda self, **k: calls.append("evolution") or step(self, **k))
    trainer = train(Trainer(config_of("evolution+asynchronous"), 0, digits, CPU), 2)
    assert calls == ["iteration"] * 3 + ["evolution"] + ["iteration"] * 3 + ["evolution"]
    assert trainer.history[0]["evolution_replaced_conv"] > 0
    # The overlap is of the evolved network.
    assert trainer.history[-1]["overlap_mean"] == pytest.approx(
        torch.tensor(list(filter_overlap(trainer.model).values())).mean().item()
    )


@pytest.fixture
def few_digits(digits, monkeypatch):
    monkeypatch.setattr(cli, "load_data", lambda *_: digits)


def test_command_line(few_digits, tmp_path, capsys):
    arguments = ["train", *SMALL[:-1], "--method", "asynchronous", "--rate", "0.25", "--select", "input-channels"]
    assert cli.main([*arguments, "--replacement", "--rescale", "--output", str(tmp_path)]) == 0
    assert "overlap 0." in capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["config"]["method_options"]["asynchronous"] == {
        "rate": 0.25,
        "select": "input_channels",
        "replacement": True,
        "rescale": True,
    }
    with (tmp_path / "seed-0" / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(0 < float(row["overlap_mean"]) < 1 for row in rows)
    assert (tmp_path / "seed-0" / "overlap.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_is_no_picture(few_digits, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    arguments = ["train", *SMALL[:-1], "--epochs", "1", "--method", "asynchronous", "--output", str(tmp_path)]
    assert cli.main(arguments) == 0
    assert "no picture of the log is drawn: it needs matplotlib" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate", "0"], "--method asynchronous: rate must be in (0, 1], got 0.0"),
        (["--rate", "1.5"], "--rate: must be a number in [0, 1]"),
    ],
)
def test_bad_options_are_one_line(few_digits, tmp_path, capsys, arguments, message):
    try:
        status = cli.main(["train", *SMALL, "--method", "asynchronous", "--output", str(tmp_path), *arguments])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
