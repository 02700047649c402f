import csv
import json
from pathlib import Path

import pytest
import torch

from tests.processes import run_ranks, torchrun
from tests.training.training_runs import EPOCHS, make_config
from weight_evolution import FilterGrafting
from weight_evolution.training import UserError, cli
from weight_evolution.training.checkpoint import save_checkpoint
from weight_evolution.training.config import TrainingConfig
from weight_evolution.training.networks import PREVIOUS, Networks, network_seed, summarize_networks
from weight_evolution.training.runs import CHECKPOINT
from weight_evolution.training.trainer import Trainer, evaluate

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
SMALL = ["--model", "resnet8", "--batch-size", "32", "--epochs", "2", "--device", "cpu", "--quiet"]


@pytest.fixture
def few_digits(digits, monkeypatch):
    monkeypatch.setattr(cli, "load_data", lambda *_: digits)


def config_of(method="grafting", changes=None, **grafting) -> TrainingConfig:
    options = {
        "networks": 2,
        "learning_rates": None,
        "level": "layer",
        "criterion": "entropy",
        "strength": 0.4,
        "sharpness": 500.0,
        "bins": 10,
        "every": 1,
        **grafting,
    }
    evolution = make_config().method_options["evolution"]
    every = {"grafting": options, "evolution": evolution, **(changes or {})}
    return TrainingConfig(
        model="resnet8",
        method=method,
        method_options={name: every[name] for name in method.split("+")},
        epochs=EPOCHS,
        batch_size=32,
    )


def train(networks, until=EPOCHS):
    while networks.epoch < until:
        networks.run_epoch()
    return networks


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(entry) for key, entry in value.items() if not str(key).endswith("seconds")}
    return [without_times(entry) for entry in value] if isinstance(value, list) else value


def assert_same(a, b):
    torch.testing.assert_close(without_times(a), without_times(b), rtol=0, atol=0, check_dtype=True)


def states(networks):
    return [
        {**without_times(t.state_dict()), "config": None, "methods": repr(t.state_dict()["methods"])}
        for t in networks.trainers.values()
    ]


def assert_equal_networks(a, b):
    for one, other in zip(states(a), states(b), strict=True):
        assert one.keys() == other.keys()
        for key in ("seed", "epoch", "history", "methods"):
            assert one[key] == other[key], key
        assert_same(one["model"], other["model"])
        assert_same(one["optimizer"]["state"], other["optimizer"]["state"])


def test_networks_are_grafted_after_each_epoch_but_the_last(digits, monkeypatch):
    steps = []
    step = FilterGrafting.step
    monkeypatch.setattr(FilterGrafting, "step", lambda self: steps.append(1) or step(self))
    networks = train(Networks(config_of(), 0, digits, CPU), 1)
    first, second = (trainer.model for trainer in networks.trainers.values())
    torch.testing.assert_close(first.conv1.weight, second.conv1.weight)  # as two are after a graft
    train(networks)
    assert len(steps) == EPOCHS - 1
    for trainer in networks.trainers.values():
        columns = [row.get("grafting_kept_mean") for row in trainer.history]
        assert columns[-1] is None
        assert all(0.3 < kept < 0.7 for kept in columns[:-1])
        # What is left is what was measured.
        assert evaluate(trainer.model, digits) == (
            trainer.history[-1]["test_loss"],
            trainer.history[-1]["test_accuracy"],
        )
    kept = [trainer.history[0]["grafting_kept_mean"] for trainer in networks.trainers.values()]
    assert sum(kept) == pytest.approx(1)


@pytest.mark.parametrize(("every", "expected"), [(2, 1), (3, 1), (9, 0)])
def test_graft_every(digits, monkeypatch, every, expected):
    steps = []
    step = FilterGrafting.step

    def untrained(self):
        self.history.append({})
        self.epoch += 1

    monkeypatch.setattr(Trainer, "run_epoch", untrained)
    monkeypatch.setattr(FilterGrafting, "step", lambda self: steps.append(1) or step(self))
    train(Networks(config_of(every=every), 0, digits, CPU))
    assert len(steps) == expected


def test_the_first_network_starts_as_the_baseline_and_the_others_differ(digits):
    networks = train(Networks(config_of(networks=3), 5, digits, CPU), 1)
    baseline = Trainer(make_config("baseline"), 5, digits, CPU)
    row = baseline.run_epoch()
    own = [trainer.history[0] for trainer in networks.trainers.values()]
    assert {key: own[0][key] for key in row if not key.endswith("seconds")} == without_times(row)
    assert len({row["train_loss"] for row in own}) == 3
    assert len({network_seed(seed, i) for seed in range(3) for i in range(3)}) == 9


def test_own_learning_rates_and_options(digits):
    config = config_of(learning_rates=[0.1, 0.025], strength=0.0, level="filter", criterion="l1", bins=5, sharpness=3.0)
    networks = train(Networks(config, 0, digits, CPU), 1)
    assert [trainer.history[0]["lr"] for trainer in networks.trainers.values()] == [0.1, 0.025]
    rule = networks.grafting
    assert (rule.strength, rule.level, rule.criterion, rule.bins, rule.sharpness) == (0.0, "filter", "l1", 5, 3.0)


def test_resume_is_bit_equal(digits, tmp_path):
    method = "evolution+grafting"
    folders = {i: tmp_path / str(i) for i in range(2)}
    for folder in folders.values():
        folder.mkdir()
    whole = train(Networks(config_of(method), 1, digits, CPU))
    train(Networks(config_of(method), 1, digits, CPU), 2).save(folders)
    torch.rand(5)  # another process: the global generator is elsewhere
    second = Networks(config_of(method), 1, digits, CPU)
    second.load(folders)
    assert (second.epoch, second.grafting.steps) == (2, 2)
    assert_equal_networks(train(second), whole)


def test_a_crash_between_two_checkpoints_loses_one_epoch_only(digits, tmp_path):
    folders = {i: tmp_path / str(i) for i in range(2)}
    for folder in folders.values():
        folder.mkdir()
    networks = Networks(config_of(), 1, digits, CPU)
    for _ in range(2):
        networks.run_epoch()
        networks.save(folders)
    networks.run_epoch()
    # The first has its third checkpoint; the second has moved its second one away, and no more.
    (folders[0] / CHECKPOINT).replace(folders[0] / PREVIOUS)
    save_checkpoint(networks.trainers[0].state_dict(), folders[0] / CHECKPOINT)
    (folders[1] / CHECKPOINT).replace(folders[1] / PREVIOUS)
    resumed = Networks(config_of(), 1, digits, CPU)
    resumed.load(folders)
    assert resumed.epoch == 2
    train(resumed, 3)
    assert_equal_networks(resumed, networks)
    (folders[1] / PREVIOUS).unlink()
    with pytest.raises(UserError, match=r"of different epochs: \[\[2, 3\], \[\]\]"):
        Networks(config_of(), 1, digits, CPU).load(folders)


def test_a_trainer_alone_does_not_graft(digits):
    with pytest.raises(UserError, match="several networks at once"):
        Trainer(config_of(), 0, digits, CPU).run_epoch()


def test_low_rank_is_refused(digits):
    config = TrainingConfig(
        model="resnet8",
        method="grafting+low-rank",
        method_options={"grafting": config_of().method_options["grafting"], "low-rank": {}},
    )
    with pytest.raises(UserError, match="do not go together"):
        Networks(config, 0, digits, CPU)


def test_the_best_network_stands_beside_the_first():
    def history(*accuracies):
        return [{"test_accuracy": accuracy, "train_seconds": 1.0, "lr": 0.1} for accuracy in accuracies]

    results = summarize_networks(
        config_of(), {0: [history(50.0, 80.0), history(99.0, 90.0)], 1: [history(70.0), history(60.0)]}, CPU
    )
    assert results["last_epoch_test_accuracy_mean"] == 75.0
    assert results["best_network_last_epoch_test_accuracy_mean"] == 80.0
    assert [run["best_network"] for run in results["runs"]] == [1, 0]
    assert results["runs"][0]["networks_last_epoch_test_accuracy"] == [80.0, 90.0]
    assert results["last_epoch_test_accuracy_of"] == "first network"


def run(*arguments) -> int:
    try:
        return cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code


def model_of(path):
    return torch.load(path, weights_only=True)["model"]


def test_command_line(few_digits, tmp_path, capsys):
    options = [*SMALL, "--method", "grafting", "--graft-learning-rates", 0.1, 0.05]
    assert run("train", *options, "--output", tmp_path / "whole", "--seeds", 0, 1) == 0
    out = capsys.readouterr().out
    results = json.loads((tmp_path / "whole" / "results.json").read_text())
    first, best = (results[f"{of}last_epoch_test_accuracy_mean"] for of in ("", "best_network_"))
    assert f"test accuracy of the last epoch: {first:.2f}% +-" in out
    assert "the first network" in out
    assert f"{best:.2f}% +-" in out
    assert "the best of 2, chosen on the test set" in out
    with (tmp_path / "whole" / "seed-1" / "network-1" / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert [row["grafting_invalid_filters_0.1"] for row in rows][1] == ""
    assert float(rows[0]["lr"]) == 0.05

    assert run("train", *options, "--output", tmp_path / "whole") == 2
    assert "pass --resume" in capsys.readouterr().err
    assert run("train", *options, "--output", tmp_path / "parts", "--stop-after", 1) == 0
    assert run("train", *options, "--output", tmp_path / "parts", "--resume") == 0
    for i in range(2):
        whole, parts = (
            model_of(tmp_path / name / "seed-0" / f"network-{i}" / CHECKPOINT) for name in ("whole", "parts")
        )
        assert_same(whole, parts)
    capsys.readouterr()
    assert run("inspect", tmp_path / "whole" / "seed-0" / "network-1" / CHECKPOINT, "--thresholds", 1e9, 0) == 0
    out = capsys.readouterr().out
    assert "method grafting" in out
    assert "invalid, L1 norm under 1e+09: 240 of 240 conv filters\ninvalid, L1 norm under 0: 0 of 240" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--networks", "1"], "--networks must be at least 2, got 1"),
        (["--networks", "3", "--graft-learning-rates", "0.1", "0.2"], "must be one per network (3), got 2"),
        (["--graft-strength", "2"], "--graft-strength: must be a number in [0, 1]"),
        (["--graft-bins", "999"], "bins must be at most 256"),
    ],
)
def test_bad_options_are_one_line(few_digits, tmp_path, capsys, arguments, message):
    assert run("train", *SMALL, "--method", "grafting", "--output", tmp_path, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


GRAFTING = ["train", *SMALL[:-1], "--threads", "1", "--method", "grafting"]


@pytest.mark.slow
def test_under_torchrun_it_is_the_same(tmp_path):
    options = [*GRAFTING, "--batch-size", "512"]
    assert_the_same(
        torchrun(2, "weight_evolution.training.cli", *options, "--output", tmp_path / "r"), options, tmp_path
    )


def test_on_ranks_it_is_the_same(few_digits, tmp_path):
    ranks = run_ranks(2, "tests.training.cli_rank", *GRAFTING, "--output", tmp_path / "r")
    assert_the_same(ranks, GRAFTING, tmp_path)


def assert_the_same(ranks, options, tmp_path):
    """Of what finished processes trained and what one process does with these options."""
    assert ranks.returncode == 0, ranks.stderr
    assert ranks.stdout.count("results in") == 1
    assert run(*options, "--output", tmp_path / "p") == 0
    for i in range(2):
        one, other = (model_of(tmp_path / name / "seed-0" / f"network-{i}" / CHECKPOINT) for name in ("r", "p"))
        assert_same(one, other)
    one, other = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("r", "p"))
    assert without_times(one) == without_times(other)


def test_other_methods_under_torchrun(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert run("train", *SMALL, "--output", tmp_path) == 2
    assert "under torchrun only --method grafting trains" in capsys.readouterr().err
