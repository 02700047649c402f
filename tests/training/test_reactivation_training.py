import csv
import json

import pytest
import torch

from tests.training.test_asynchronous_training import assert_same, comparable, train
from tests.training.training_runs import EPOCHS, make_config
from weight_evolution import UnitReactivation
from weight_evolution.training import cli
from weight_evolution.training.checkpoint import read_checkpoint, save_checkpoint
from weight_evolution.training.config import TrainingConfig
from weight_evolution.training.methods.reactivation import Options
from weight_evolution.training.trainer import Trainer

CPU = torch.device("cpu")
SMALL = ["--model", "resnet8", "--batch-size", "32", "--epochs", "2", "--device", "cpu", "--quiet"]
MANY = {"every": 2, "batches": 2, "threshold": 1.0}
"""Of three iterations per epoch: measurements go on over the end of an epoch, and half of the units start anew."""


def config_of(method: str = "reactivation", **options) -> TrainingConfig:
    every = {"reactivation": vars(Options(**(MANY | options))), **make_config("evolution").method_options}
    every["asynchronous"] = {"rate": 0.5, "select": "filters", "replacement": False, "rescale": False}
    return TrainingConfig(
        model="resnet8",
        method=method,
        method_options={name: every[name] for name in method.split("+")},
        epochs=EPOCHS,
        batch_size=32,
    )


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("reactivation", {}),
        ("reactivation", {"every": 4, "batches": 4, "scale": "donor", "optimizer_state": "reset"}),
        ("reactivation", {"replacement_rate": 0.5, "maturity": 1, "every": 1, "batches": 1}),
        ("reactivation", {"importance": "l1", "outgoing": "keep"}),
        ("evolution+asynchronous+reactivation", {}),
    ],
)
def test_resume_is_bit_equal(digits, tmp_path, method, options):
    config = config_of(method, **options)
    whole = train(Trainer(config, 1, digits, CPU))
    assert sum(row["reactivation_revived"] for row in whole.history[EPOCHS // 2 :]) > 0
    save_checkpoint(train(Trainer(config, 1, digits, CPU), EPOCHS // 2).state_dict(), tmp_path / "c.pt")
    second = Trainer(config, 1, digits, CPU)
    second.load_state_dict(read_checkpoint(tmp_path / "c.pt"))
    train(second)
    assert second.methods["reactivation"].reactivation.iterations == 3 * EPOCHS
    assert_same(comparable(whole.state_dict()), comparable(second.state_dict()))


class AfterEachIteration:
    """A `UnitReactivation` called where the trainer calls methods, by hand."""

    def __init__(self, trainer, **options):
        self.reactivation = UnitReactivation(trainer.model, trainer.optimizer, **options)
        self.reports = []
        trainer._iteration_hooks.append(self)

    def __call__(self):
        self.reports.append(self.reactivation.step())


def test_it_is_the_class_after_every_iteration_with_the_runs_seed(digits):
    baseline = Trainer(make_config("baseline"), 3, digits, CPU)
    hand = AfterEachIteration(baseline, seed=3, **MANY)
    trainer = Trainer(config_of(), 3, digits, CPU)
    assert_same(train(baseline, 2).model.state_dict(), train(trainer, 2).model.state_dict())
    reports = [report for report in hand.reports[3:] if report]  # of the second epoch
    row = trainer.history[1]
    assert row["reactivation_revived"] == sum(report.total for report in reports) > 0
    assert row["reactivation_dead"] == sum(reports[-1].dead.values())
    assert row["reactivation_units"] == sum(reports[-1].units.values())
    assert Trainer(config_of(), 4, digits, CPU).methods["reactivation"].reactivation.seed == 4


def test_test_images_have_no_say(digits, monkeypatch):
    """A measurement that goes on over the end of an epoch, where the test images pass through the network."""
    config = config_of(every=4, batches=4)
    with_test = train(Trainer(config, 0, digits, CPU), 2)
    monkeypatch.setattr(Trainer, "evaluate", lambda self: (0.0, 0.0))
    without = train(Trainer(config, 0, digits, CPU), 2)
    assert with_test.history[1]["reactivation_revived"] > 0
    assert_same(with_test.model.state_dict(), without.model.state_dict())


def test_nothing_dormant_is_the_baseline(digits):
    trainer = train(Trainer(config_of(threshold=0.0), 0, digits, CPU), 2)
    assert [row["reactivation_revived"] for row in trainer.history] == [0, 0]
    assert_same(
        train(Trainer(make_config("baseline"), 0, digits, CPU), 2).model.state_dict(), trainer.model.state_dict()
    )


def test_an_epoch_without_a_step_has_no_dead_units_in_its_row(digits):
    trainer = train(Trainer(config_of(every=5), 0, digits, CPU), 2)
    assert ["reactivation_dead" in row for row in trainer.history] == [False, True]


@pytest.fixture
def few_digits(digits, monkeypatch):
    monkeypatch.setattr(cli, "load_data", lambda *_: digits)


def test_command_line(few_digits, tmp_path, capsys):
    options = {
        "threshold": 0.5,
        "every": 3,
        "batches": 2,
        "scale": "donor",
        "outgoing": "keep",
        "optimizer-state": "reset",
        "rate": 0.2,
        "maturity": 0,
        "decay": 0.5,
        "utility": "adaptation",
        "importance": "activity",
    }
    given = [part for name, value in options.items() for part in (f"--reactivation-{name}", str(value))]
    assert cli.main(["train", *SMALL[:-1], "--method", "reactivation", *given, "--output", str(tmp_path)]) == 0
    assert "  revived " in capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    renamed = {"rate": "replacement_rate", "optimizer-state": "optimizer_state"}
    assert results["config"]["method_options"]["reactivation"] == {renamed.get(k, k): v for k, v in options.items()}
    with (tmp_path / "seed-0" / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    revived = [int(row["reactivation_revived"]) for row in rows]
    assert results["runs"][0]["reactivation_revived"] == sum(revived) > 0
    assert all(0 <= int(row["reactivation_dead"]) <= int(row["reactivation_units"]) for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--reactivation-rate", "0"], "--method reactivation: replacement_rate must be in (0, 1], got 0.0"),
        (["--reactivation-decay", "1"], "--method reactivation: decay must be below 1"),
        (["--reactivation-every", "0"], "--reactivation-every: must be an integer from 1"),
        (["--reactivation-threshold", "-1"], "--reactivation-threshold: must be a number from 0"),
        (
            ["--reactivation-rate", "0.1", "--reactivation-importance", "l1"],
            '--method reactivation: replacement_rate goes by utility; it needs importance="activity"',
        ),
    ],
)
def test_bad_options_are_one_line(few_digits, tmp_path, capsys, arguments, message):
    try:
        status = cli.main(["train", *SMALL, "--method", "reactivation", "--output", str(tmp_path), *arguments])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
