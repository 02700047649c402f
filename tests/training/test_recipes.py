"""Optimizers, precision, memory format, compilation and the average of the weights: what they do, and exact resume."""

import json
import math

import pytest
import torch

from tests.training.test_trainer import assert_same_state
from tests.training.training_runs import make_config
from weight_evolution import UnitAdamW
from weight_evolution.training import cli
from weight_evolution.training.checkpoint import read_checkpoint, save_checkpoint
from weight_evolution.training.config import LATER, TrainingConfig
from weight_evolution.training.errors import UserError
from weight_evolution.training.optimizers import make_optimizer
from weight_evolution.training.trainer import Trainer, evaluate

CPU = torch.device("cpu")
SMALL = ["train", "--model", "resnet8", "--batch-size", "32", "--epochs", "2", "--device", "cpu", "--quiet"]
BOTH = ["--optimizer", "adamw", "--ema", "0.5"]
METHODS = {
    "baseline": [],
    "evolution": ["--local-ratio", "0.9"],
    "low-rank": [],
    "asynchronous": [],
    "reactivation": ["--reactivation-every", "2", "--reactivation-rate", "0.2", "--reactivation-maturity", "0"],
    "grafting": [],
    "distillation": ["--teachers", "TEACHER"],
}


@pytest.fixture(autouse=True)
def few_digits(digits, monkeypatch):
    monkeypatch.setattr(cli, "load_data", lambda *_: digits)


@pytest.fixture(scope="session")
def teacher(tmp_path_factory, digits):
    folder = tmp_path_factory.mktemp("teacher")
    save_checkpoint(Trainer(make_config("baseline"), 7, digits, CPU).state_dict(), folder / "t.pt")
    return folder / "t.pt"


def options_of(method, teacher):
    return [str(teacher) if word == "TEACHER" else word for word in METHODS[method]]


def resumed_is_whole(tmp_path, *options, folder=""):
    """Train in one go and in two parts; returns the checkpoint that both end with."""
    for name, more in (("whole", ()), ("parts", ("--stop-after", "1")), ("parts", ("--resume",))):
        assert cli.main([*SMALL, *options, *more, "--output", str(tmp_path / name)]) == 0
        torch.rand(5)  # another process: the global generator is elsewhere
    whole, parts = (read_checkpoint(tmp_path / n / "seed-0" / folder / "checkpoint.pt") for n in ("whole", "parts"))
    for state in (whole, parts):
        for row in state["history"]:
            for column in [column for column in row if column.endswith("seconds")]:
                del row[column]
    assert_same_state(whole, parts)
    return whole


@pytest.mark.sampled(3)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_with_adamw_and_an_average(tmp_path, teacher, method):
    folder = "network-0" if method == "grafting" else ""
    state = resumed_is_whole(tmp_path, *BOTH, "--method", method, *options_of(method, teacher), folder=folder)
    assert state["ema"]["steps"] == 6
    assert state["history"][-1]["ema_test_accuracy"] > 0
    assert all({"exp_avg", "exp_avg_sq"} <= of.keys() for of in state["optimizer"]["state"].values())
    if method == "reactivation":
        assert sum(row["reactivation_revived"] for row in state["history"]) > 0
    if method == "evolution":
        assert state["history"][0]["evolution_replaced_conv"] > 0


@pytest.mark.sampled(2)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", [["--amp", "bf16"], ["--channels-last"], ["--optimizer", "unit-adamw"]], ids=str)
def test_every_method_with_other_recipes(tmp_path, teacher, method, options):
    folder = "network-0" if method == "grafting" else ""
    resumed_is_whole(
        tmp_path, *options, "--ema", "0.5", "--method", method, *options_of(method, teacher), folder=folder
    )


@pytest.mark.parametrize(
    ("name", "kind", "given", "expected"),
    [
        ("sgd", torch.optim.SGD, [], {"lr": 0.1, "weight_decay": 5e-4, "momentum": 0.9, "nesterov": True}),
        ("adamw", torch.optim.AdamW, [], {"lr": 1e-3, "weight_decay": 1e-2}),
        ("adamw", torch.optim.AdamW, ["--lr", "0.1", "--weight-decay", "0"], {"lr": 0.1, "weight_decay": 0}),
        ("unit-adamw", UnitAdamW, [], {"lr": 1e-3, "weight_decay": 1e-2}),
    ],
)
def test_optimizers_and_their_defaults(tmp_path, monkeypatch, name, kind, given, expected):
    configs = []
    monkeypatch.setattr(cli, "train_seeds", lambda config, *_: configs.append(config) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main([*SMALL, "--optimizer", name, *given, "--output", str(tmp_path)])
    optimizer = make_optimizer(configs[0], torch.nn.Linear(2, 2))
    assert type(optimizer) is kind
    assert {key: optimizer.param_groups[0][key] for key in expected} == expected


def test_the_average_is_of_the_weights_and_the_statistics(digits, monkeypatch):
    trainer = Trainer(make_config("baseline", ema=0.75), 0, digits, CPU)
    states = []
    trainer._iteration_hooks.append(
        lambda: states.append({n: t.clone() for n, t in trainer.model.state_dict().items()})
    )
    row = trainer.run_epoch()
    assert len(states) == 3
    for name, average in trainer.ema.model.state_dict().items():
        if average.is_floating_point():
            expected = states[0][name]
            for state in states[1:]:
                expected = expected * 0.75 + state[name] * 0.25
            torch.testing.assert_close(average, expected)
    assert (row["ema_test_loss"], row["ema_test_accuracy"]) == evaluate(trainer.ema.model, digits)
    assert row["ema_test_loss"] != row["test_loss"]


def test_the_average_is_reported(tmp_path, capsys):
    options = [*SMALL[:-1], "--method", "baseline", *BOTH, "--seeds", "0", "1", "--epochs", "1"]
    assert cli.main([*options, "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    mean = results["last_epoch_ema_test_accuracy_mean"]
    assert mean == pytest.approx(sum(run["last_epoch_ema_test_accuracy"] for run in results["runs"]) / 2)
    out = capsys.readouterr().out
    assert f"average of the weights (--ema 0.5), last epoch: {mean:.2f}% +-" in out
    assert f"ema {results['runs'][0]['last_epoch_ema_test_accuracy']:.2f}%" in out
    state = torch.load(tmp_path / "seed-0" / "checkpoint.pt", weights_only=True)
    assert state["ema"]["model"].keys() == state["model"].keys()


def test_lower_precision_is_of_the_network_alone(digits, monkeypatch):
    seen = []
    trainer = Trainer(make_config("baseline", amp="bf16"), 0, digits, CPU)
    trainer.model.fc.register_forward_hook(lambda module, inputs, output: seen.append((module.training, output.dtype)))
    trainer._extra_losses.append(lambda images, logits: seen.append(("loss", logits.dtype)) or logits.new_zeros(()))
    trainer.run_epoch()
    assert set(seen) == {(True, torch.bfloat16), ("loss", torch.float32), (False, torch.float32)}
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}


def scaled(digits):
    """A trainer whose losses are scaled, as with fp16 on a GPU."""
    trainer = Trainer(make_config("baseline"), 0, digits, CPU)
    trainer._step._scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=4)
    return trainer


def test_scaled_losses_change_nothing_and_the_scale_is_resumed(digits):
    plain, whole, first, second = (make(digits) for make in (unscaled, scaled, scaled, scaled))
    for trainer, epochs in ((plain, 2), (whole, 2), (first, 1)):
        for _ in range(epochs):
            trainer.run_epoch()
    second.load_state_dict(first.state_dict())
    second.run_epoch()
    assert whole.state_dict()["step"]["scale"] == 8.0  # grew after four of six steps
    for trainer in (whole, second):
        assert_same_state(trainer.state_dict()["model"], plain.state_dict()["model"])
        assert_same_state(trainer.state_dict()["step"], whole.state_dict()["step"])
    with pytest.raises(UserError, match="does not fit this run"):
        scaled(digits).load_state_dict(plain.state_dict())


def unscaled(digits):
    return Trainer(make_config("baseline"), 0, digits, CPU)


def test_a_step_whose_gradients_overflow_is_left_out(digits):
    trainer = scaled(digits)
    trainer.model.fc.weight.register_hook(lambda gradient: gradient * math.inf)
    before = trainer.model.fc.weight.clone()
    trainer.run_epoch()
    assert torch.equal(trainer.model.fc.weight, before)
    assert trainer.state_dict()["step"]["scale"] == 0.5  # halved by each of three steps


def test_channels_last(digits):
    trainer = Trainer(make_config("baseline", channels_last=True), 0, digits, CPU)
    convolutions = [m for m in trainer.model.modules() if isinstance(m, torch.nn.Conv2d) and m.in_channels > 1]
    assert convolutions
    assert all(m.weight.is_contiguous(memory_format=torch.channels_last) for m in convolutions)
    seen = []
    convolutions[0].register_forward_hook(
        lambda module, inputs, output: seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    trainer.run_epoch()
    assert all(seen)


@pytest.mark.sampled(1)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo's, which it hides
@pytest.mark.parametrize("method", ["evolution", "reactivation"])
def test_compiled(tmp_path, monkeypatch, method):
    calls = []

    def backend(graph, inputs):
        calls.append(1)
        return graph.forward

    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compile(model, backend=backend))
    torch._dynamo.reset()
    state = resumed_is_whole(tmp_path, "--compile", "--ema", "0.5", "--method", method, *METHODS[method])
    assert calls
    assert not any("_orig_mod" in name for name in state["model"])


def test_checkpoints_of_earlier_versions(digits):
    trainer = Trainer(make_config(), 0, digits, CPU)
    trainer.run_epoch()
    state = trainer.state_dict()
    for name in LATER:
        del state["config"][name]
    del state["step"], state["ema"]
    assert TrainingConfig.from_dict(state["config"]) == make_config()
    other = Trainer(make_config(), 0, digits, CPU)
    other.load_state_dict(state)
    assert other.epoch == 1
    with pytest.raises(UserError, match=r"ema is None there and 0\.5 here"):
        Trainer(make_config(ema=0.5), 0, digits, CPU).load_state_dict(state)


def test_an_average_of_another_model_is_refused(digits):
    config = make_config("baseline", ema=0.5)
    state = Trainer(config, 0, digits, CPU).state_dict()
    state["ema"] = {"model": {**state["ema"]["model"], "conv1.weight": torch.zeros(1)}, "steps": 0}
    other = Trainer(config, 0, digits, CPU)
    with pytest.raises(UserError, match=r"conv1\.weight has shape"):
        other.load_state_dict(state)
