"""The callbacks on a GPU, in full and mixed precision: they act as on the CPU, and resumed runs are whole ones."""

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from tests.gpu import CPU, DEVICE, deterministic, full_float32, needs_device  # noqa: F401
from tests.integrations.networks import OPTIONS, batch, network, same, weights
from weight_evolution import AsynchronousUpdate, UnitAdamW, UnitReactivation, WeightEvolution

pytestmark = [needs_device, pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("deterministic")]
LIGHTNING = ("evolution", "evolution by steps", "reactivation", "low rank", "asynchronous")
TRANSFORMERS = ("evolution", "evolution by steps", "reactivation", "low rank", "asynchronous")
PRECISIONS = ("bf16", "fp16") if DEVICE.type == "cuda" else ("bf16",)


def assert_close(here, there, rtol=0.02):
    for name, tensor in there.items():
        allowed = rtol * float(tensor.abs().max()) + 1e-3
        torch.testing.assert_close(
            here[name].to(CPU), tensor.to(CPU), rtol=0, atol=allowed, msg=lambda m, n=name: f"{n}: {m}"
        )


def lightning():
    """What test_lightning has, and how to train on the device."""
    from tests.integrations import test_lightning

    return test_lightning, {"accelerator": "gpu" if DEVICE.type == "cuda" else "cpu"}


@pytest.mark.parametrize("method", LIGHTNING)
def test_lightning(method):
    tests, place = lightning()
    acting = tests.ACTING[method]
    here, there = weights(tests.fit(acting(), **place)), weights(tests.fit(acting()))
    assert_close(here, there)
    assert not same(there, weights(tests.fit()))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("method", LIGHTNING)
def test_lightning_in_mixed_precision(method, precision):
    tests, place = lightning()
    callback = tests.ACTING[method]()
    place["precision"] = "bf16-mixed" if precision == "bf16" else "16-mixed"
    acted, plain = weights(tests.fit(callback, **place)), weights(tests.fit(**place))
    assert not same(acted, plain)
    assert all(tensor.isfinite().all() for tensor in acted.values())


@pytest.mark.parametrize("method", LIGHTNING)
def test_lightning_goes_on(method, tmp_path):
    tests, place = lightning()
    acting = tests.ACTING[method]
    saving = tests.ModelCheckpoint(tmp_path, "{epoch}-{step}", save_top_k=-1, every_n_train_steps=1)
    whole = tests.fit(acting(), saving, **place)
    for checkpoint in sorted(tmp_path.iterdir())[1:4]:
        resumed = tests.fit(acting(), checkpoint=checkpoint, **place)
        assert same(weights(resumed), weights(whole)), checkpoint.name


def transformers():
    """What test_transformers has, and how to train on the device."""
    from tests.integrations import test_transformers

    return test_transformers, {"use_cpu": DEVICE.type == "cpu"}


@pytest.mark.parametrize("method", TRANSFORMERS)
def test_transformers(method, tmp_path):
    """The Trainer moves the model; the callback's example inputs stay where they were."""
    tests, place = transformers()
    acting = tests.ACTING[method]
    # All images are one, so that many gradients are 0 but for rounding: Adam would move their weights by the learning
    # rate, here or there.
    options = {"optim": "sgd"}
    here = weights(tests.fit(tmp_path / "here", acting(), **place, **options).model)
    assert {tensor.device.type for tensor in here.values()} == {DEVICE.type}
    there = weights(tests.fit(tmp_path / "there", acting(), **options).model)
    assert_close(here, there)
    assert not same(there, weights(tests.fit(tmp_path / "plain", **options).model))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("method", TRANSFORMERS)
def test_transformers_in_mixed_precision(method, precision, tmp_path):
    tests, place = transformers()
    callback = tests.ACTING[method]()
    runner = tests.fit(tmp_path, callback, **place, **{precision: True})
    assert getattr(callback._method, "evolution", callback._method).steps > 0
    assert all(tensor.isfinite().all() for tensor in weights(runner.model).values())


@pytest.mark.parametrize("method", TRANSFORMERS)
def test_transformers_go_on(method, tmp_path):
    tests, place = transformers()
    acting = tests.ACTING[method]
    place |= {"save_strategy": "steps", "save_steps": 1}
    whole = tests.fit(tmp_path / "whole", acting(), **place)
    for step in (1, 3):
        resumed = tests.fit(tmp_path / "other", acting(), checkpoint=tmp_path / "whole" / f"checkpoint-{step}", **place)
        if method == "low rank":  # projects from new bases
            assert_close(weights(resumed.model), weights(whole.model))
        else:
            assert same(weights(resumed.model), weights(whole.model)), step


@pytest.fixture
def accelerator_of():
    """Makes an Accelerator for the device; another one can be made afterwards."""
    pytest.importorskip("accelerate")
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield lambda **options: Accelerator(cpu=DEVICE.type == "cpu", **options)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("precision", ["no", *PRECISIONS])
@pytest.mark.parametrize("kind", [SGD, AdamW, UnitAdamW])
def test_accelerate(accelerator_of, kind, precision, tmp_path):
    """All methods around a prepared optimizer, and their states in that of the accelerator."""

    def begin():
        accelerator = accelerator_of(mixed_precision=precision)
        model = network()
        options = {"momentum": 0.9} if kind is SGD else {}
        model, optimizer = accelerator.prepare(model, kind(model.parameters(), lr=0.05, **options))
        methods = [
            WeightEvolution(model, optimizer=optimizer, **OPTIONS),
            UnitReactivation(model, optimizer, every=2, batches=1, replacement_rate=0.4, maturity=0),
            AsynchronousUpdate(optimizer, model),
        ]
        accelerator.register_for_checkpointing(*methods)
        return accelerator, model, optimizer, methods

    def epoch(accelerator, model, optimizer, methods):
        images, labels = (part.to(accelerator.device) for part in batch())
        for number in range(3):
            loss = nn.functional.cross_entropy(model(images + number / 10), labels)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            methods[1].step()
        methods[0].step()

    whole = begin()
    assert next(whole[1].parameters()).device.type == DEVICE.type
    for number in range(4):
        epoch(*whole)
        if number == 1:
            whole[0].save_state(str(tmp_path / "state"))
    resumed = begin()
    resumed[0].load_state(str(tmp_path / "state"))
    for _ in range(2):
        epoch(*resumed)
    assert resumed[3][2].steps == whole[3][2].steps > 0
    assert same(weights(resumed[1]), weights(whole[1]))
