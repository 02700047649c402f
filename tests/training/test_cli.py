import csv
import json
import re
import subprocess
import sys

import pytest
import torch

from tests.training.training_runs import make_config
from weight_evolution.training import cli
from weight_evolution.training.methods import method_options

SMALL = ["--model", "resnet8", "--batch-size", "32", "--epochs", "2", "--device", "cpu", "--quiet"]


@pytest.fixture(autouse=True)
def few_digits(digits, monkeypatch):
    load = cli.load_data
    monkeypatch.setattr(cli, "load_data", lambda name, *rest: digits if name == "digits" else load(name, *rest))


def run(*arguments) -> int:
    try:
        return cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code


def weights(path):
    return torch.load(path, weights_only=True)["model"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--data", "mnist"], "--data must be digits"),
        (["train", "--epochs", "0"], "--epochs: must be an integer from 1, got '0'"),
        (["train", "--epochs", "1.5"], "--epochs: must be an integer from 1"),
        (["train", "--lr", "nan"], "--lr: must be a positive number"),
        (["train", "--lr", "-1"], "--lr: must be a positive number"),
        (["train", "--lr", "inf"], "--lr: must be a positive number"),
        (["train", "--momentum", "1"], "--momentum: must be below 1"),
        (["train", "--weight-decay", "-1"], "--weight-decay: must be a number from 0"),
        (["train", "--conv-rate", "1.1"], "--conv-rate: must be a number in [0, 1], got '1.1'"),
        (["train", "--local-ratio", "nan"], "--local-ratio: must be a number in [0, 1]"),
        (["train", "--crossover", "both"], "--crossover: invalid choice"),
        (["train", "--method", "prune"], "--method must be baseline or of evolution"),
        (["train", "--method", "evolution+evolution"], "names a method twice"),
        (["train", "--model", "resnet21"], "depth must be 6n + 2"),
        (["train", "--model", "alexnet"], "--model must be resnet20"),
        (["train", "--seeds", "1", "1"], "--seeds must differ"),
        (["train", "--milestones", "3"], "missing --divisors and --tau"),
        (["train", "--milestones", "3", "2", "--divisors", "1", "2", "3", "--tau", "1"], "milestones must be positive"),
        (["train", "--milestones", "3", "--divisors", "1", "--tau", "1"], "divisors must be one per stage (2)"),
        (["train", "--resume", "--overwrite"], "contradict"),
        (["train", "--rate", "0.3"], "--rate belongs to --method asynchronous, which --method evolution is without"),
        (
            ["train", "--method", "baseline", "--conv-rate=0.3", "--tau", "1"],
            "--conv-rate, --tau belongs to --method evo",
        ),
        (["train", "--method", "low-rank", "--graft-every", "2"], "--graft-every belongs to --method grafting"),
        (["train", "--optimizer", "keep"], "--optimizer: invalid choice: 'keep'"),
        (["train", "--optimizer", "adamw", "--momentum=0.5"], "--momentum belongs to --optimizer sgd, not to adamw"),
        (["train", "--amp", "fp16", "--device", "cpu"], "--amp fp16 needs a CUDA device; use --amp bf16"),
        (["train", "--ema", "1"], "--ema: must be a number above 0 and below 1, got '1'"),
        (["train", "--norm-shift-rate", "all"], "--norm-shift-rate: must be a number in [0, 1], got 'all'"),
        (["train", "--model", "torch.nn:Linear"], "--model torch.nn:Linear does not work called with nothing"),
        (["train", "--data", "fashion-mnist", "--root", "/nowhere"], "apt install dataset-fashion-mnist"),
        (["train", "--threads", "0"], "--threads: must be an integer from 1"),
        (["train", "--output", "/dev/null/x"], "cannot make the folder /dev/null/x"),
        (["inspect", "/nowhere.pt"], "/nowhere.pt: no such file"),
        (["demo", "--output", "/dev/null/x"], "cannot make the folder"),
        (["frobnicate"], "invalid choice"),
        ([], "COMMAND"),
    ],
)
def test_errors_are_one_line(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("weight-evolution")
    assert not list(tmp_path.rglob("*.pt"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_that_is_not_there(capsys):
    assert run("train", "--device", "cuda") == 2
    assert "torch sees no CUDA device" in capsys.readouterr().err


def test_train_writes_logs_checkpoints_and_results(tmp_path, capsys):
    assert run("train", *SMALL, "--seeds", 0, 3, "--output", tmp_path, "--log", "json") == 0
    results = json.loads((tmp_path / "results.json").read_text())
    logs = [json.loads((tmp_path / f"seed-{seed}" / "log.json").read_text()) for seed in (0, 3)]
    assert [[row["epoch"] for row in log] for log in logs] == [[0, 1], [0, 1]]
    last = [log[-1]["test_accuracy"] for log in logs]
    assert [entry["last_epoch_test_accuracy"] for entry in results["runs"]] == last
    assert results["last_epoch_test_accuracy_mean"] == pytest.approx(sum(last) / 2)
    assert results["config"]["method"] == "evolution"
    assert f"test accuracy of the last epoch: {sum(last) / 2:.2f}%" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["baseline", "evolution"])
def test_stop_and_resume_equals_one_go(tmp_path, method):
    options = [*SMALL, "--method", method, *(["--local-ratio", "0.9"] if method == "evolution" else [])]
    assert run("train", *options, "--output", tmp_path / "whole") == 0
    assert run("train", *options, "--output", tmp_path / "parts", "--stop-after", 1) == 0
    assert run("train", *options, "--output", tmp_path / "parts", "--resume") == 0
    whole, parts = (weights(tmp_path / name / "seed-0" / "checkpoint.pt") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    with (tmp_path / "parts" / "seed-0" / "log.csv").open(newline="") as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1"]


def test_a_run_is_extended_by_more_epochs(tmp_path, capsys):
    options = [*SMALL[:-1], "--local-ratio", "0.9", "--output", tmp_path]
    assert run("train", *options) == 0
    longer = [*options, "--epochs", 4, "--resume"]
    before = (tmp_path / "seed-0" / "checkpoint.pt").read_bytes()
    assert run("train", *longer, "--conv-rate", 0.3) == 2
    assert "conv_rate is 0.2 there and 0.3 here" in capsys.readouterr().err
    assert run("train", *longer, "--epochs", 1) == 2
    assert "the checkpoint is of a run of 2 epochs, not 1; pass --epochs 2, or more" in capsys.readouterr().err
    assert (tmp_path / "seed-0" / "checkpoint.pt").read_bytes() == before
    assert run("train", *longer) == 0
    said = "resumed after 2 of 4 epochs; it was to have 2: what is left follows the schedules of the new number"
    assert said in capsys.readouterr().out
    with (tmp_path / "seed-0" / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"]
    # No evolution after the last epoch: of the first run, and of the extension.
    assert ["" if not row["evolution_rate_conv"] else "evolved" for row in rows] == ["evolved", "", "evolved", ""]


def test_results_are_not_overwritten_unasked(tmp_path, capsys):
    assert run("train", *SMALL, "--output", tmp_path) == 0
    before = (tmp_path / "seed-0" / "checkpoint.pt").read_bytes()
    assert run("train", *SMALL, "--output", tmp_path, "--lr", 0.2) == 2
    assert "pass --resume" in capsys.readouterr().err
    assert run("train", *SMALL, "--output", tmp_path, "--lr", 0.2, "--resume") == 2
    assert "lr is 0.1 there and 0.2 here" in capsys.readouterr().err
    assert (tmp_path / "seed-0" / "checkpoint.pt").read_bytes() == before
    assert run("train", *SMALL, "--output", tmp_path, "--lr", 0.2, "--overwrite") == 0
    assert (tmp_path / "seed-0" / "checkpoint.pt").read_bytes() != before


def test_stages_beyond_the_run_are_told_in_the_words_of_the_command(tmp_path, capsys):
    stages = ["--milestones", "1", "100", "150", "--divisors", "1", "2", "3", "5", "--tau", "25"]
    assert run("train", *SMALL, "--output", tmp_path, *stages) == 0
    assert "warning: --milestones 100 and 150 are never reached in --epochs 2\n" in capsys.readouterr().err


def test_options_reach_the_method():
    parser = cli.make_parser()
    options = parser.parse_args(["train", "--epochs", "20", "--evolve-every", "3", "--crossover", "released"])
    evolution = method_options("evolution", options)["evolution"]
    assert evolution["every"] == 3
    assert evolution["crossover"] == "released"
    assert evolution["schedule"] == {"milestones": [6, 12], "divisors": [1.0, 2.5, 5.0], "tau": 1.5}
    assert (evolution["conv_rate"], evolution["norm_scale_rate"]) == (0.2, 0.05)
    assert evolution.keys() == make_config().method_options["evolution"].keys()

    options = parser.parse_args(["train", "--epochs", "90", "--schedule", "imagenet", "--norm-shift-rate", "0.3"])
    evolution = method_options("evolution", options)["evolution"]
    assert evolution["schedule"] == {"milestones": [30, 60], "divisors": [1.0, 2.0, 4.0], "tau": 8.0}
    assert (evolution["conv_rate"], evolution["norm_scale_rate"], evolution["norm_shift_rate"]) == (0.02, 0.02, 0.3)

    options = parser.parse_args(["train", "--schedule", "constant"])
    assert method_options("evolution", options)["evolution"]["schedule"] is None
    assert method_options("baseline", options) == {}


@pytest.mark.parametrize("method", ["baseline", "evolution"])
def test_inspect_prints_and_changes_nothing(tmp_path, capsys, method):
    run("train", *SMALL, "--method", method, "--output", tmp_path)
    path = tmp_path / "seed-0" / "checkpoint.pt"
    before = path.read_bytes()
    capsys.readouterr()
    assert run("inspect", path) == 0
    assert run("inspect", path, "--conv-rate", 0.5, "--norm-rate", 0, "--local-ratio", 0.95) == 0
    assert run("inspect", path, "--rate", 0.5, "--norm-rate", 0, "--local-ratio", 0.95) == 0  # as it was called before
    plain, changed, again = capsys.readouterr().out.split(f"{path}: ")[1:]
    assert again == changed
    for text in (plain, changed):
        assert "resnet8 on digits" in text
        assert f"method {method}, seed 0, 2 of 2 epochs, test accuracy" in text
        rows = {line.split()[0]: line.split() for line in text.splitlines() if line}
        assert rows["layer3.0.conv2.weight"][1] == "64"
    first, conv = (
        next(line.split() for line in text.splitlines() if line.startswith("conv ")) for text in (plain, changed)
    )
    # The stages for two epochs start at epochs 0, 1 and 2: the last epoch's rate is 0.2 / 2.5 / 2.
    assert float(first[1]) == {"baseline": 0.2, "evolution": 0.04}[method]
    assert float(conv[1]) == 0.5
    assert int(conv[4]) > 50  # at these options about half of the 304 filters
    assert path.read_bytes() == before


BROKEN = {
    "history": ([{}], "history[0] is {}"),
    "model": ({"conv.weight": 3}, "model['conv.weight'] is 3"),
    "config": ([], "config is []"),
    "epoch": ("2", "epoch is '2'"),
    "seed": (None, "seed is None"),
    "methods": ({"evolution": 3}, "not a state_dict of WeightEvolution"),
}


@pytest.mark.parametrize("key", [*BROKEN, "epochs", "method_options", "crossover"])
def test_inspect_of_wrong_types_is_one_line(tmp_path, capsys, key):
    run("train", *SMALL, "--epochs", 1, "--output", tmp_path)
    path = tmp_path / "seed-0" / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    if key in BROKEN:
        state[key], message = BROKEN[key]
    elif key == "crossover":
        del state["config"]["method_options"]["evolution"]["crossover"]
        message = "the options of --method evolution have no 'crossover'"
    else:
        state["config"][key] = [3]
        message = f"the configuration's {key} is [3]"
    torch.save(state, path)
    capsys.readouterr()
    assert run("inspect", path) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""


@pytest.mark.parametrize("command", ["train", "inspect", "compact", "demo"])
def test_help_shows_one_spelling_and_the_unit_of_every_interval(command, capsys):
    assert run(command, "--help") == 0
    text = capsys.readouterr().out
    assert not {"--force", "--no-progress"} & set(text.split())
    assert ("--rate" in text.split()) == (command == "train")
    assert ("--overwrite" in text) == (command in ("train", "inspect", "compact"))
    assert ("--quiet" in text) == (command in ("train", "demo"))
    intervals = re.findall(r"^ +--[a-z-]*every\S* N\s+(.*)", text, re.MULTILINE)
    assert len(intervals) == (5 if command == "train" else 0)
    assert all(line.startswith(("N epochs", "N iterations")) for line in intervals)


def test_old_spellings_are_still_read():
    parser = cli.make_parser()
    assert parser.parse_args(["compact", "c.pt", "-o", "o.pt", "--force"]).overwrite
    assert not parser.parse_args(["compact", "c.pt", "-o", "o.pt"]).overwrite
    assert parser.parse_args(["demo", "--no-progress"]).quiet
    assert not parser.parse_args(["demo"]).quiet
    assert parser.parse_args(["inspect", "c.pt", "--rate", "0.5"]).conv_rate == 0.5
    assert parser.parse_args(["inspect", "c.pt"]).conv_rate is None
    assert parser.parse_args(["train", "--extend"]).resume


def test_info_and_version(capsys):
    assert run("info") == 0
    assert "torch:" in capsys.readouterr().out
    assert run("--version") == 0


def test_importing_the_package_imports_no_extra():
    code = (
        "import sys, weight_evolution, weight_evolution.training.cli\n"
        "extras = {'sklearn', 'matplotlib', 'torchvision', 'timm', 'tensorboard'}\n"
        "assert not extras & set(sys.modules), extras & set(sys.modules)\n"
        "import torch; assert not torch.cuda.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
