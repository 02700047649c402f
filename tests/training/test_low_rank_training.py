import csv
import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.training.training_runs import EPOCHS, make_config
from weight_evolution import LowRankProjection
from weight_evolution.training import UserError, cli, load_compact
from weight_evolution.training.checkpoint import read_checkpoint, save_checkpoint
from weight_evolution.training.config import TrainingConfig
from weight_evolution.training.methods import low_rank
from weight_evolution.training.runs import summarize
from weight_evolution.training.trainer import Trainer, evaluate

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
SMALL = ["--model", "resnet8", "--batch-size", "32", "--epochs", "2", "--device", "cpu", "--quiet"]


@pytest.fixture
def few_digits(digits, monkeypatch):
    from weight_evolution.training import compacting

    monkeypatch.setattr(cli, "load_data", lambda *_: digits)
    monkeypatch.setattr(compacting, "load_data", lambda *_: digits)


def config_of(method: str = "low-rank", **options) -> TrainingConfig:
    base = make_config("evolution")
    low_rank = {
        "prune_ratio": 0.6,
        "mac_budget": None,
        "linear": False,
        "rectify": True,
        "energy_transfer": True,
        "every_iterations": None,
        "optimizer_state": "keep",
        **options,
    }
    every = {"low-rank": low_rank, **base.method_options}
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


def run(*arguments) -> int:
    try:
        return cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code


def assert_same(a, b):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            if not str(key).endswith("seconds"):
                assert_same(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def ranks_of(model: nn.Module, names) -> dict[str, int]:
    """From singular values in float64; float32 rounding leaves some 1e-7 of the largest."""
    modules = dict(model.named_modules())
    ranks = {}
    for name in names:
        weight = modules[name].weight.detach().double()
        values = torch.linalg.svdvals(weight.reshape(len(weight), -1))
        ranks[name] = int((values > 1e-5 * values[0]).sum())
    return ranks


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("low-rank", {}),
        ("low-rank", {"prune_ratio": None, "mac_budget": 0.5, "every_iterations": 2}),
        ("evolution+low-rank", {"optimizer_state": "reset", "every_iterations": 4}),
    ],
)
def test_resume_is_bit_equal(digits, tmp_path, method, options):
    config = config_of(method, **options)
    whole = train(Trainer(config, 1, digits, CPU))
    save_checkpoint(train(Trainer(config, 1, digits, CPU), EPOCHS // 2).state_dict(), tmp_path / "c.pt")
    torch.rand(5)  # another process: the global generator is elsewhere
    second = Trainer(config, 1, digits, CPU)
    second.load_state_dict(read_checkpoint(tmp_path / "c.pt"))
    train(second)
    assert_same(whole.state_dict(), second.state_dict())


@pytest.mark.parametrize("state", ["keep", "fill", "reset"])
def test_the_optimizer_s_state_is_treated_as_asked(digits, monkeypatch, state):
    asked = []

    class Asked(LowRankProjection):
        def __init__(self, model, **options):
            asked.append((options["optimizer_state"], options["optimizer"]))
            super().__init__(model, **options)

    monkeypatch.setattr(low_rank, "LowRankProjection", Asked)
    trainer = Trainer(config_of(optimizer_state=state), 0, digits, CPU)
    assert asked == [(state, None if state == "keep" else trainer.optimizer)]


def test_the_last_epoch_ends_projected_and_its_accuracy_is_the_compact_networks(digits):
    trainer = train(Trainer(config_of(), 0, digits, CPU))
    projection = trainer.methods["low-rank"].projection
    assert projection.ranks
    assert ranks_of(trainer.model, projection.ranks) == projection.ranks
    compact = projection.compact()
    row = trainer.history[-1]
    assert (row["compact_test_loss"], row["compact_test_accuracy"]) == evaluate(compact, digits)
    # The projected weights' own; the log's test_loss is of the weights before.
    assert row["compact_test_loss"] == pytest.approx(trainer.evaluate()[0], rel=1e-4)
    assert row["test_loss"] != pytest.approx(row["compact_test_loss"], rel=1e-3)
    assert row["compact_parameters"] == sum(p.numel() for p in compact.parameters()) < row["parameters"]
    assert row["compact_macs"] < 0.6 * row["macs"]
    assert 0 < row["low_rank_energy_kept_min"] < row["low_rank_energy_kept_mean"] < 1


def test_the_compact_network_itself_is_measured(digits, monkeypatch):
    compact = LowRankProjection.compact

    def always_three(self):
        model = compact(self)
        nn.init.zeros_(model.fc.weight)
        model.fc.bias.data[3] = 1e3
        return model

    monkeypatch.setattr(LowRankProjection, "compact", always_three)
    row = train(Trainer(config_of(), 0, digits, CPU), 1).history[0]
    threes = 100 * float((digits.test_labels == 3).double().mean())
    assert row["compact_test_accuracy"] == pytest.approx(threes) != row["test_accuracy"]


def test_results_are_the_compact_networks():
    costs = {"parameters": 9, "compact_parameters": 4, "macs": 80, "compact_macs": 30, "train_seconds": 1.0}
    rows = [{"test_accuracy": a, "compact_test_accuracy": b, **costs} for a, b in ((97.0, 60.0), (95.0, 50.0))]
    results = summarize(config_of(), {0: rows}, CPU)
    assert results["last_epoch_test_accuracy_mean"] == results["runs"][0]["last_epoch_test_accuracy"] == 50.0
    assert results["runs"][0]["best_epoch_test_accuracy"] == 60.0
    assert results["runs"][0]["uncompressed_test_accuracy"] == 95.0
    plain = summarize(config_of(), {0: [{"test_accuracy": 7.0, "train_seconds": 1.0}]}, CPU)
    assert plain["last_epoch_test_accuracy_mean"] == 7.0
    assert "accuracy_of" not in plain["runs"][0]


def test_compact_takes_the_ranks_of_the_run(digits, tmp_path):
    """Those of the checkpoint, not those that its options would give for today's weights."""
    state = train(Trainer(config_of(), 0, digits, CPU), 1).state_dict()
    state["methods"]["low-rank"]["projection"]["ranks"]["layer2.0.conv2"] = 5
    save_checkpoint(state, tmp_path / "c.pt")
    assert run("compact", "--device", "cpu", tmp_path / "c.pt", "-o", tmp_path / "o.pt") == 0
    assert load_compact(tmp_path / "o.pt").layer2[0].conv2[0].out_channels == 5


def test_before_its_first_projection_a_run_is_the_baseline(digits):
    baseline = train(Trainer(make_config("baseline"), 0, digits, CPU), 2).history
    projected = train(Trainer(config_of(), 0, digits, CPU), 2).history
    shared = [key for key in baseline[0] if not key.endswith("seconds")]
    assert {key: baseline[0][key] for key in shared} == {key: projected[0][key] for key in shared}
    assert baseline[1]["train_loss"] != projected[1]["train_loss"]
    assert "compact_test_accuracy" not in baseline[0]


@pytest.mark.parametrize(("every", "expected"), [(None, 2), (2, 2 + 3), (3, 2 + 2), (7, 2)])
def test_projections_within_epochs(digits, monkeypatch, every, expected):
    """90 images in batches of 32: 3 iterations an epoch, counted on over the epochs."""
    calls = []
    step = LowRankProjection.step
    monkeypatch.setattr(LowRankProjection, "step", lambda self: calls.append(1) or step(self))
    train(Trainer(config_of(every_iterations=every), 0, digits, CPU), 2)
    assert len(calls) == expected


def test_a_budget_is_met_and_spent_on_trained_weights(digits):
    trainer = Trainer(config_of(prune_ratio=None, mac_budget=0.4), 0, digits, CPU)
    fresh = trainer.methods["low-rank"].projection.ranks
    with torch.no_grad():  # what training does to spectra, at once
        trainer.model.layer2[0].conv2.weight.fill_(0.1)
    train(trainer, 1)
    chosen = trainer.methods["low-rank"].projection.ranks
    train(trainer)
    assert trainer.methods["low-rank"].projection.ranks == chosen
    assert chosen != fresh
    assert 0.3 < trainer.history[-1]["compact_macs"] / trainer.history[-1]["macs"] <= 0.4


@pytest.mark.parametrize("option", ["rectify", "energy_transfer", "linear"])
def test_options_change_the_projection(digits, option):
    losses = [train(Trainer(config_of(**{option: on}), 0, digits, CPU), 1).history[0] for on in (True, False)]
    assert losses[0]["test_loss"] == losses[1]["test_loss"]
    assert losses[0]["compact_test_loss"] != losses[1]["compact_test_loss"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prune-ratio", "0.5", "--mac-budget", "0.5"], "--prune-ratio and --mac-budget both choose the ranks"),
        (["--prune-ratio", "1"], "prune_ratio must be in [0, 1), got 1.0"),
        (["--prune-ratio", "0.5", "0.6"], "prune_ratio has 2 entries for 7 layers"),
        (["--mac-budget", "0.001"], "budget=0.001 cannot be met"),
        (["--mac-budget", "1.5"], "--mac-budget: must be a number in [0, 1]"),
        (["--project-every-iterations", "0"], "--project-every-iterations: must be an integer from 1"),
    ],
)
def test_bad_options_are_one_line(few_digits, tmp_path, capsys, arguments, message):
    assert run("train", *SMALL, "--method", "low-rank", "--output", tmp_path, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_train_then_compact(few_digits, digits, tmp_path, capsys):
    """The command's file, loaded, has the accuracy that training reported, the parameters that both printed."""
    assert run("train", *SMALL, "--method", "low-rank", "--prune-ratio", 0.8, "--output", tmp_path / "runs") == 0
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "runs" / "results.json").read_text())
    with (tmp_path / "runs" / "seed-0" / "log.csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert result["runs"][0]["last_epoch_test_accuracy"] == float(last["compact_test_accuracy"])
    assert result["runs"][0]["uncompressed_test_accuracy"] == float(last["test_accuracy"])
    assert result["runs"][0]["accuracy_of"] == "compact network"
    assert "test accuracy of the compact network" in printed

    checkpoint, out = tmp_path / "runs" / "seed-0" / "checkpoint.pt", tmp_path / "small.pt"
    before = torch.get_rng_state()
    assert run("compact", "--device", "cpu", checkpoint, "-o", out) == 0
    printed = capsys.readouterr().out
    assert run("inspect", out) == 0
    assert capsys.readouterr().out.startswith(f"{out}: a compact network of weight-evolution\n")
    compact = load_compact(out)
    state = read_checkpoint(checkpoint)["history"][-1]
    parameters = sum(p.numel() for p in compact.parameters())
    assert parameters == state["compact_parameters"] == result["runs"][0]["compact_parameters"]
    assert f"parameters {state['parameters']:,} -> {parameters:,}" in printed
    assert f"MACs of one 1x8x8 image {state['macs']:,} -> {state['compact_macs']:,}" in printed
    assert re.search(rf"test accuracy [\d.]+% -> {state['compact_test_accuracy']:.2f}% \(70 images\)", printed)
    assert "fc: Linear" in printed
    assert not compact.training
    assert evaluate(compact, digits)[1] == state["compact_test_accuracy"]
    torch.set_rng_state(before)
    load_compact(out)
    assert torch.equal(torch.get_rng_state(), before)

    written = out.read_bytes()
    assert run("compact", "--device", "cpu", checkpoint, "-o", out) == 2
    assert "pass --overwrite" in capsys.readouterr().err
    assert out.read_bytes() == written
    out.write_bytes(b"old")
    assert run("compact", "--device", "cpu", checkpoint, "-o", out, "--overwrite") == 0
    out.write_bytes(b"old")
    assert run("compact", "--device", "cpu", tmp_path / "runs", "-o", out, "--force") == 0  # as it was called before
    assert_same(dict(load_compact(out).state_dict()), dict(compact.state_dict()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "small.pt"]


def test_linear_layers_take_part(few_digits, tmp_path, capsys):
    runs, out = tmp_path / "runs", tmp_path / "small.pt"
    options = ["--method", "low-rank", "--prune-ratio", "0.5", "--linear", "--output", runs]
    assert run("train", *SMALL, *options) == 0
    capsys.readouterr()
    assert run("compact", "--device", "cpu", runs / "seed-0" / "checkpoint.pt", "-o", out) == 0
    assert "Linear" not in capsys.readouterr().out
    first, second = load_compact(out).fc
    assert (first.in_features, first.out_features, second.out_features) == (64, 5, 10)


def test_compact_without_the_data(digits, tmp_path, capsys, monkeypatch):
    from weight_evolution.training import compacting

    def missing(*_):
        raise UserError("no files here")

    monkeypatch.setattr(compacting, "load_data", missing)
    save_checkpoint(train(Trainer(config_of(), 0, digits, CPU), 1).state_dict(), tmp_path / "c.pt")
    assert run("compact", "--device", "cpu", tmp_path / "c.pt", "-o", tmp_path / "o.pt") == 0
    assert "test accuracy not measured: no files here" in capsys.readouterr().out
    load_compact(tmp_path / "o.pt")


def test_wrong_files_are_one_line_errors(digits, tmp_path, capsys):
    good, baseline, early = tmp_path / "good.pt", tmp_path / "baseline.pt", tmp_path / "early.pt"
    save_checkpoint(train(Trainer(config_of(), 0, digits, CPU), 1).state_dict(), good)
    save_checkpoint(Trainer(make_config("baseline"), 0, digits, CPU).state_dict(), baseline)
    save_checkpoint(Trainer(config_of(), 0, digits, CPU).state_dict(), early)
    (tmp_path / "text.pt").write_text("text")
    (tmp_path / "folder").mkdir()
    out = tmp_path / "out.pt"
    for checkpoint, output, message in [
        (tmp_path / "none.pt", out, "cannot read"),
        (tmp_path / "text.pt", out, "not a checkpoint or is damaged"),
        (baseline, out, "method baseline, without low-rank"),
        (early, out, "before the first projection"),
        (good, tmp_path / "folder", "is a folder"),
        (good, tmp_path / "no" / "out.pt", "there is no folder"),
        (good, good, "is what is read; name another file"),
    ]:
        assert run("compact", "--device", "cpu", checkpoint, "-o", output, "--overwrite") == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not out.exists()
    read_checkpoint(good)


def test_load_compact_refuses_other_files(digits, tmp_path):
    path = tmp_path / "f.pt"
    with pytest.raises(UserError, match="cannot read"):
        load_compact(path)
    path.write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(UserError, match="damaged"):
        load_compact(path)
    save_checkpoint(train(Trainer(config_of(), 0, digits, CPU), 1).state_dict(), path)
    with pytest.raises(UserError, match="not a compact network; weight-evolution compact"):
        load_compact(path)
    assert run("compact", "--device", "cpu", path, "-o", tmp_path / "o.pt") == 0
    saved = torch.load(tmp_path / "o.pt", weights_only=True)
    for change, message in [
        ({"format": 2}, "has format 2"),
        ({"ranks": {"nothing": 3}}, "'nothing' is not a layer"),
        ({"ranks": []}, "ranks is missing or of another type"),
        ({"num_classes": 11}, r"fc.weight has shape \(10, 64\) there and \(11, 64\) here"),
    ]:
        torch.save({**saved, **change}, path)
        with pytest.raises(UserError, match=message):
            load_compact(path)
