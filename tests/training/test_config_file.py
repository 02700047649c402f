"""``train --config FILE`` and ``--print-config``."""

import pytest

from weight_evolution.training import cli, config_file
from weight_evolution.training.config_file import read_config

STOP = "that is enough"


@pytest.fixture(autouse=True)
def runs(monkeypatch):
    """What would be trained: configuration, seeds, output."""
    seen = []
    monkeypatch.setattr(cli, "load_data", lambda *given: given)
    monkeypatch.setattr(
        cli, "train_seeds", lambda config, seeds, data, device, output, say, ranks: stop(config, seeds, output)
    )

    def stop(*run):
        seen.append(run)
        raise cli.UserError(STOP)

    return seen


def run(*arguments) -> int:
    try:
        return cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code


def write(folder, text):
    path = folder / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def trained(runs, *arguments):
    assert run("train", "--device", "cpu", *arguments) == 2
    return runs.pop()


def test_a_file_is_as_good_as_the_command_line(tmp_path, runs):
    path = write(
        tmp_path,
        """
        data = "cifar100"  # as on the command line
        batch-size = 64
        lr_milestones = [30, 40]
        lr = 0.05
        weight-decay = 1
        augment = false
        nesterov = true
        channels-last = true
        method = "evolution+asynchronous"
        rate = 0.25
        norm-shift-rate = "inferior"
        conv-rate = 0.3
        evolve-every = 2
        seeds = [3, 4]
        output = "there"
        """,
    )
    config, seeds, output = trained(runs, "--config", path)
    given = trained(
        runs, "--data", "cifar100", "--batch-size", 64, "--lr-milestones", 30, 40, "--lr", 0.05, "--weight-decay", 1,
        "--no-augment", "--channels-last", "--method", "evolution+asynchronous", "--rate", 0.25, "--norm-shift-rate",
        "inferior", "--conv-rate", 0.3, "--evolve-every", 2, "--seeds", 3, 4, "--output", "there",
    )  # fmt: skip
    assert (config, seeds, output) == given
    assert (config.lr_milestones, config.augment, config.channels_last) == ([30, 40], False, True)
    assert (seeds, str(output.folder)) == ([3, 4], "there")


def test_the_command_line_goes_first(tmp_path, runs):
    path = write(tmp_path, 'lr = 0.05\nepochs = 9\naugment = false\nresume = true\nseeds = [1, 2]\noptimizer = "adamw"')
    config, seeds, output = trained(
        runs, "--lr", 0.5, "--config", path, "--augment", "--no-resume", "--seeds", 7, "--optimizer", "sgd"
    )
    assert (config.lr, config.epochs, config.augment, config.optimizer) == (0.5, 9, True, "sgd")
    assert (seeds, output.resume) == ([7], False)


def test_another_method_may_be_chosen_than_the_file_has_options_of(tmp_path, runs):
    path = write(tmp_path, "conv-rate = 0.3\nmomentum = 0.8")
    config, _, _ = trained(runs, "--config", path, "--method", "baseline", "--optimizer", "adamw")
    assert (config.method_options, config.optimizer) == ({}, "adamw")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("leraning-rate = 1", "run.toml: there is no option leraning-rate; --print-config"),
        ("extend = true", "there is no option extend"),
        ("config = 'a'", "there is no option config"),
        ("no-augment = true", "there is no option no-augment"),
        ("[recipe]\nlr = 0.1", "there is no option recipe"),
        ("epochs = 0", "run.toml: argument --epochs: must be an integer from 1, got '0'"),
        ("lr = nan", "run.toml: argument --lr: must be a positive number"),
        ("lr = true", "run.toml: lr must be a number or a string, got True"),
        ("lr = [0.1]", "run.toml: lr must be a number or a string, got [0.1]"),
        ("seeds = [[1]]", "run.toml: seeds must be a number or string, or a list of them, got [1]"),
        ("seeds = []", "run.toml: argument --seeds: expected at least one argument"),
        ("augment = 'no'", "run.toml: augment must be true or false, got 'no'"),
        ("optimizer = 'adam'", "run.toml: argument --optimizer: invalid choice: 'adam'"),
        ("amp = true", "run.toml: amp must be one of bf16, fp16, got True"),
        ("lr = 1979-05-27", "lr must be a number or a string"),
        ("lr = ", "run.toml is not TOML"),
        ("method = 'baseline'\nconv-rate = 0.3", "run.toml: --conv-rate belongs to --method evolution"),
        ("optimizer = 'adamw'\nmomentum = 0.8", "run.toml: --momentum belongs to --optimizer sgd, not to adamw"),
        (None, "--config: cannot read"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path, runs, capsys, text, message):
    path = tmp_path / "run.toml" if text is None else write(tmp_path, text)
    assert run("train", "--device", "cpu", "--config", path) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert runs == []


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["--optimizer", "adamw", "--no-augment", "--lr-milestones", "3", "4", "--ema", "0.99", "--seeds", "0", "1"],
        ["--method", "low-rank+reactivation", "--prune-ratio", "0.5", "0.6", "--linear", "--resume", "--no-checksum"],
        ["--milestones", "--divisors", "2", "--tau", "1.5", "--output", 'a "quoted" \\ ü folder'],
    ],
)
def test_what_is_printed_is_read_again(tmp_path, runs, capsys, given):
    assert run("train", "--device", "cpu", *given, "--print-config") == 0
    path = write(tmp_path, capsys.readouterr().out)
    assert runs == []
    assert trained(runs, "--config", path) == trained(runs, *given)


def test_every_option_is_printed(capsys):
    assert run("train", "--print-config") == 0
    text = capsys.readouterr().out
    keys = {line.removeprefix("# ").partition(" =")[0] for line in text.splitlines() if " =" in line}
    parser = cli.make_parser().parse_args(["train"]).parser
    shown = {action.dest for action in parser._actions if action.help != "==SUPPRESS=="} - {
        "help",
        "config",
        "print_config",
    }
    assert len(keys) == len(shown) > 60
    assert "\nlr-schedule = " in text
    assert "\n# graft-every = 1\n" in text  # of another method
    assert "\n# lr =\n" in text  # the optimizer's default


def test_python_3_10_needs_tomli(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(config_file, "tomllib", None)
    assert run("train", "--config", write(tmp_path, "")) == 2
    assert "pip install '.[train]' in a clone" in capsys.readouterr().err


def test_underscores_are_dashes(tmp_path):
    parser = cli.make_parser().parse_args(["train"]).parser
    assert read_config(write(tmp_path, "batch_size = 3"), parser) == ["--batch-size=3"]
