"""The trainer on a GPU: every method, optimizer and precision against the CPU; stopping and resuming; the command."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.gpu import CPU, DEVICE, deterministic, full_float32, needs_device, needs_gpu  # noqa: F401
from tests.processes import run_module
from tests.training.training_runs import make_config
from tests.waiting import no_waiting
from weight_evolution.training import cli, load_compact
from weight_evolution.training.checkpoint import read_checkpoint
from weight_evolution.training.config import rates
from weight_evolution.training.data import training_batches
from weight_evolution.training.methods import asynchronous, grafting, low_rank, reactivation
from weight_evolution.training.networks import Networks
from weight_evolution.training.runs import CHECKPOINT, OutputOptions, train_seeds
from weight_evolution.training.trainer import Trainer, evaluate

pytestmark = [needs_device, pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("full_float32")]
EPOCHS = 2
OPTIONS = {
    "evolution": make_config().method_options["evolution"],
    "asynchronous": vars(asynchronous.Options()),
    "low-rank": vars(low_rank.Options(prune_ratio=0.6)),
    "reactivation": vars(reactivation.Options(every=2, batches=2, threshold=1.0)),
    "grafting": vars(grafting.Options(networks=2)),
}
METHODS = [
    "baseline",
    "evolution",
    "asynchronous",
    "low-rank",
    "reactivation",
    "evolution+low-rank",
    "evolution+asynchronous+reactivation",
]


def config_of(method="baseline", *, optimizer="sgd", options=None, **changes):
    names = [] if method == "baseline" else method.split("+")
    config = make_config("baseline", epochs=EPOCHS, optimizer=optimizer, **rates(optimizer), **changes)
    own = {name: {**OPTIONS[name], **(options or {})} for name in names}
    return replace(config, method=method, method_options=own)


def train(trainer, until=EPOCHS):
    while trainer.epoch < until:
        trainer.run_epoch()
    return trainer


def numbers(history):
    """Without times."""
    return [{key: value for key, value in row.items() if not key.endswith("seconds")} for row in history]


def assert_close(here, there, rtol=0.02):
    """Rows of the log; weights that differ by 1e-6 at the start made at most a fifth of these differences."""
    for one, other in zip(numbers(here), numbers(there), strict=True):
        assert one.keys() == other.keys()
        for key, value in other.items():
            if key == "evolution_threshold_norm_shift":  # of values that are 0 but for rounding
                continue
            counts = key.endswith("accuracy") or isinstance(value, int)
            allowed = max(5.0, 0.1 * abs(value)) if counts else rtol * abs(value) + 1e-5
            assert abs(one[key] - value) <= allowed, (key, one[key], value)


def assert_same(here, there, name="state"):
    assert type(here) is type(there), name
    if isinstance(here, torch.Tensor):
        difference = (here.double() - there.double().to(here.device)).abs().max() if here.numel() else 0.0
        assert torch.equal(here, there.to(here.device)), f"{name} differs by up to {float(difference):.3g}"
    elif isinstance(here, dict):
        assert here.keys() == there.keys(), name
        for key in here:
            if not str(key).endswith("seconds"):
                assert_same(here[key], there[key], f"{name}[{key!r}]")
    elif isinstance(here, list):
        assert len(here) == len(there), name
        for i, (one, other) in enumerate(zip(here, there, strict=True)):
            assert_same(one, other, f"{name}[{i}]")
    else:
        assert here == there, name


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "unit-adamw"])
@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_that_of_the_cpu_but_for_rounding(digits, method, optimizer):
    config = config_of(method, optimizer=optimizer)
    here, there = (train(Trainer(config, 3, digits, device)) for device in (DEVICE, CPU))
    assert next(here.model.parameters()).device.type == DEVICE.type
    assert_close(here.history, there.history)
    acted = {"evolution": "evolution_replaced_conv", "reactivation": "reactivation_revived"}
    assert all(here.history[0][acted[name]] > 0 for name in method.split("+") if name in acted)


@pytest.mark.parametrize(
    "changes",
    [
        {"channels_last": True},
        {"ema": 0.9},
        {"amp": "bf16"},
        {"amp": "fp16"},
        {"amp": "bf16", "channels_last": True, "ema": 0.9, "optimizer": "unit-adamw"},
        {"amp": "fp16", "channels_last": True, "ema": 0.9, "optimizer": "adamw"},
        {"model": "mobilenetv2"},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_precision_memory_format_and_average(digits, changes):
    if changes.get("amp") == "fp16" and DEVICE.type == "cpu":
        pytest.skip("fp16 is for GPUs")
    config = config_of("evolution+asynchronous+reactivation", **changes)
    here = train(Trainer(config, 3, digits, DEVICE))
    there = train(Trainer(replace(config, amp=None, channels_last=False), 3, digits, CPU))
    # Units that are dormant by little in one precision are not in the other: the second epoch is another network's.
    first = [{key: row[key] for key in ("train_loss", "lr", "filters")} for row in (here.history[0], there.history[0])]
    assert_close(first[:1], first[1:], rtol=0.1 if config.amp else 0.02)
    assert here.history[1]["train_loss"] == pytest.approx(there.history[1]["train_loss"], rel=0.5)
    formats = {parameter.is_contiguous(memory_format=torch.channels_last) for parameter in here.model.parameters()
               if parameter.dim() == 4}  # fmt: skip
    assert formats == {True} or not config.channels_last
    assert all(parameter.isfinite().all() for parameter in here.model.parameters())
    if config.ema is not None:
        assert {tensor.device.type for tensor in here.ema.model.parameters()} == {DEVICE.type}


@needs_gpu
def test_compiled(digits):
    config = config_of("evolution+asynchronous", compile=True)
    here = train(Trainer(config, 3, digits, DEVICE))
    assert_close(here.history, train(Trainer(replace(config, compile=False), 3, digits, CPU)).history, rtol=0.01)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("baseline", {}),
        ("evolution", {}),
        ("low-rank", {}),
        ("evolution+asynchronous+reactivation", {}),
        ("evolution+reactivation", {"optimizer": "adamw", "ema": 0.9}),
        ("evolution+reactivation", {"optimizer": "unit-adamw", "ema": 0.9}),
        ("asynchronous", {"amp": "fp16", "channels_last": True}),
    ],
    ids=str,
)
def test_a_resumed_run_is_one_that_never_stopped(digits, tmp_path, method, changes):
    """Bit for bit, with deterministic operators."""
    if changes.get("amp") == "fp16" and DEVICE.type == "cpu":
        pytest.skip("fp16 is for GPUs")
    config, output = config_of(method, **changes), OutputOptions(tmp_path, stop_after=1)
    whole = train(Trainer(config, 1, digits, DEVICE))
    train_seeds(config, [1], digits, DEVICE, output, print)
    train_seeds(config, [1], digits, DEVICE, replace(output, resume=True, stop_after=None), print)
    state = read_checkpoint(tmp_path / "seed-1" / CHECKPOINT)
    assert_same(state, whole.state_dict())


@pytest.mark.parametrize("optimizer", ["adamw", "unit-adamw"])
def test_counters_of_steps_are_on_the_host_after_a_resume_too(digits, tmp_path, optimizer):
    """Each of them would be waited for, in every step."""
    config, output = config_of(optimizer=optimizer), OutputOptions(tmp_path, stop_after=1)
    train_seeds(config, [1], digits, DEVICE, output, print)
    train_seeds(config, [1], digits, DEVICE, replace(output, resume=True, stop_after=None), print)
    states = torch.load(tmp_path / "seed-1" / CHECKPOINT, weights_only=True)["optimizer"]["state"].values()
    assert {state["step"].device for state in states} == {CPU}
    assert {state["exp_avg"].device.type for state in states} == {DEVICE.type}


@needs_gpu
@pytest.mark.parametrize("method", ["baseline", "asynchronous", "reactivation"])
def test_an_epoch_waits_for_the_device_where_it_measures_only(digits, method):
    """Not from batch to batch: all that is launched then runs behind the host."""
    config = config_of(method, options={"every": 100, "batches": 100} if method == "reactivation" else None)
    trainer = train(Trainer(config, 1, digits, DEVICE), 1)
    mean, deviation = trainer.dataset.statistics
    trainer.model.train()
    batches = training_batches(trainer.dataset, 32, 1, 1, True)
    first = next(batches)  # the order of the images is sent with it
    with no_waiting():
        for images, targets in [first, *batches]:
            trainer._train_on((images.float() - mean) / deviation, targets)


def test_a_compact_network(digits, tmp_path, monkeypatch, capsys):
    """By train, and by compact on the device, read on the CPU; of inspect it is a network like others."""
    from weight_evolution.training import compacting

    monkeypatch.setattr(cli, "load_data", lambda *_: digits)
    monkeypatch.setattr(compacting, "load_data", lambda *_: digits)
    small = ["--model", "resnet8", "--batch-size", "32", "--epochs", "2", "--quiet"]
    place, checkpoint, compact = ["--device", DEVICE.type], tmp_path / "seed-0" / CHECKPOINT, tmp_path / "compact.pt"
    run("train", *small, *place, "--method", "low-rank", "--prune-ratio", "0.6", "--output", tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    run("compact", checkpoint, *place, "-o", compact)
    said = capsys.readouterr().out
    there = results["runs"][0]["last_epoch_test_accuracy"]
    accuracy = float(re.search(r"-> ([\d.]+)% \(\d+ images\)", said)[1])
    model = load_compact(compact)
    assert {parameter.device for parameter in model.parameters()} == {CPU}
    assert evaluate(model, digits)[1] == pytest.approx(there, abs=3)
    assert accuracy == pytest.approx(there, abs=3)
    for source in (checkpoint, compact):
        run("inspect", source)
        assert "filters" in capsys.readouterr().out


def run(*arguments):
    assert cli.main([str(argument) for argument in arguments]) == 0


def test_grafted_networks(digits):
    config = config_of("grafting")

    def histories(device):
        networks = Networks(config, 1, digits, device)
        for _ in range(EPOCHS):
            networks.run_epoch()
        return [trainer.history for trainer in networks.trainers.values()]

    for here, there in zip(histories(DEVICE), histories(CPU), strict=True):
        assert "grafting_kept_mean" in here[0]
        # An edge of a bin that moves by a rounding moves a weight, and so the entropy of a layer.
        assert_close(here, there, rtol=0.02)


@needs_gpu
def test_ranks_that_share_a_gpu(tmp_path):
    """torchrun, two networks, one GPU: over gloo."""
    options = ["--model", "resnet8", "--batch-size", "256", "--epochs", "2", "--quiet", "--method", "grafting"]
    ranks = ["--standalone", "--nproc-per-node=2", "-m", "weight_evolution.training.cli"]
    arguments = ["train", *options, "--device", "cuda", "--output", tmp_path]
    settings = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    finished = run_module("torch.distributed.run", *ranks, *arguments, timeout=60, **settings)
    assert finished.returncode == 0, finished.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert len(results["runs"][0]["networks_last_epoch_test_accuracy"]) == 2


class Dropping(nn.Sequential):
    """Draws from the device's global generator in training."""

    def __init__(self, in_channels, num_classes):
        super().__init__(
            nn.Conv2d(in_channels, 8, 3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(288, num_classes)
        )


@pytest.mark.usefixtures("deterministic")
def test_the_global_generators_are_left_alone(digits):
    config = config_of(model="tests.training.test_gpu:Dropping")
    before = torch.get_rng_state(), generator_state()
    whole = train(Trainer(config, 1, digits, DEVICE))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(generator_state(), before[1])
    second = Trainer(config, 1, digits, DEVICE)
    second.load_state_dict(train(Trainer(config, 1, digits, DEVICE), 1).state_dict())
    torch.rand(5, device=DEVICE)
    assert_same(train(second).state_dict(), whole.state_dict())


def generator_state():
    return torch.cuda.get_rng_state() if DEVICE.type == "cuda" else torch.get_rng_state()


def test_own_data(tmp_path):
    numpy = pytest.importorskip("numpy")
    random = numpy.random.default_rng(0)
    arrays = {f"{part}_images": random.integers(0, 256, (24, 12, 12, 3), dtype="uint8") for part in ("train", "test")}
    arrays |= {f"{part}_labels": random.integers(0, 3, 24) for part in ("train", "test")}
    numpy.savez(tmp_path / "data.npz", **arrays)
    run("train", "--data", f"npz:{tmp_path / 'data.npz'}", "--model", "resnet8", "--batch-size", "8", "--epochs", "1",
        "--device", DEVICE.type, "--quiet", "--output", tmp_path / "runs")  # fmt: skip
    assert json.loads((tmp_path / "runs" / "results.json").read_text())["device"].startswith(DEVICE.type)
