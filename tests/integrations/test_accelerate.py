"""The methods with accelerate: its optimizer, accumulated gradients, saved states."""

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from tests.integrations.networks import OPTIONS, batch, network, same, weights
from weight_evolution import AsynchronousSGD, AsynchronousUpdate, UnitAdamW, UnitReactivation, WeightEvolution

pytest.importorskip("accelerate")
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer

BATCHES = 6


@pytest.fixture
def accelerator(tmp_path):
    yield Accelerator(cpu=True, gradient_accumulation_steps=2, project_dir=tmp_path)
    Accelerator().free_memory()


def loss_of(model, number):
    images, labels = batch()
    return nn.functional.cross_entropy(model(images + number / 10), labels)


def train(accelerator, model, optimizer):
    """Several batches, of which two are one step; returns how many steps were made."""
    steps = 0
    for number in range(BATCHES):
        with accelerator.accumulate(model):
            accelerator.backward(loss_of(model, number))
            optimizer.step()
            optimizer.zero_grad()
            steps += accelerator.sync_gradients
    return steps


def train_plainly(model, optimizer):
    for number in range(BATCHES):
        (loss_of(model, number) / 2).backward()
        if number % 2:
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize("late", [True, False], ids=["of accelerate's optimizer", "of the optimizer before"])
def test_asynchronous_updates_of_an_accelerated_optimizer(late, accelerator):
    model, plain = network(), network()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    if late:
        model, optimizer = accelerator.prepare(model, optimizer)
        assert type(optimizer) is AcceleratedOptimizer
    update = AsynchronousUpdate(optimizer, model, rate=0.5, seed=3)
    if not late:
        model, optimizer = accelerator.prepare(model, optimizer)
    assert train(accelerator, model, optimizer) == BATCHES // 2
    assert update.state_dict()["step"] == BATCHES // 2  # not at batches that only accumulate
    other = SGD(plain.parameters(), lr=0.1, momentum=0.9)
    AsynchronousUpdate(other, plain, rate=0.5, seed=3)
    train_plainly(plain, other)
    assert same(weights(model), weights(plain))


def test_steps_that_a_scaler_skips_draw_nothing():
    model = network()
    inner = SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)
    optimizer = AcceleratedOptimizer(inner, scaler=scaler)
    update = AsynchronousUpdate(optimizer, model)
    skipped = 0
    for _ in range(12):
        optimizer.zero_grad()
        scaler.scale(loss_of(model, 0) * 2.0**8).backward()
        optimizer.step()
        skipped += optimizer.step_was_skipped
    assert 0 < skipped < 12
    assert update.state_dict()["step"] == 12 - skipped


def test_one_update_for_an_optimizer_with_and_without_its_wrapper(accelerator):
    model = accelerator.prepare(network())
    inner = SGD(model.parameters(), lr=0.1)
    first = AsynchronousUpdate(inner, model)
    outer = accelerator.prepare(inner)
    with pytest.raises(ValueError, match=r"has an AsynchronousUpdate already; call its detach\(\)"):
        AsynchronousUpdate(outer, model)
    first.detach()
    AsynchronousUpdate(outer, model).detach()
    asynchronous = accelerator.prepare(AsynchronousSGD(model.parameters(), lr=0.1, model=model))
    with pytest.raises(ValueError, match="optimizer is an AsynchronousSGD or holds one"):
        AsynchronousUpdate(asynchronous, model)


def test_a_class_that_does_more_is_not_seen_through():
    class Twice(AcceleratedOptimizer):
        def step(self, closure=None):
            super().step(closure)
            super().step(closure)

    model = network()
    Accelerator(cpu=True)
    with pytest.raises(TypeError, match="Twice whose step\\(\\) runs no step hooks"):
        AsynchronousUpdate(Twice(SGD(model.parameters(), lr=0.1)), model)


@pytest.mark.parametrize("kind", [AdamW, UnitAdamW])
def test_the_state_of_an_accelerated_optimizer_follows(kind, accelerator):
    def run(prepare):
        model = network()
        optimizer = kind(model.parameters(), lr=0.01)
        if prepare:
            model, optimizer = accelerator.prepare(model, optimizer)
        evolution = WeightEvolution(model, optimizer=optimizer, **OPTIONS)
        reactivation = UnitReactivation(model, optimizer, every=1, batches=1, replacement_rate=0.4, maturity=0)
        for number in range(4):
            loss_of(model, number).backward()
            optimizer.step()
            optimizer.zero_grad()
            assert reactivation.step().total > 0
            evolution.step()
        return weights(model), optimizer.state_dict()["state"]

    accelerator.gradient_accumulation_steps = 1
    (here, state), (there, other) = run(True), run(False)
    assert same(here, there)
    for place, entries in state.items():
        for name, value in entries.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(other[place][name])), (place, name)


def test_states_are_saved_with_the_accelerator(tmp_path):
    def begin():
        accelerator = Accelerator(cpu=True)
        model = network()
        model, optimizer = accelerator.prepare(model, SGD(model.parameters(), lr=0.1, momentum=0.9))
        methods = [
            WeightEvolution(model, optimizer=optimizer, **OPTIONS),
            UnitReactivation(model, optimizer, every=2, batches=1, replacement_rate=0.4, maturity=0),
            AsynchronousUpdate(optimizer, model),
        ]
        accelerator.register_for_checkpointing(*methods)
        return accelerator, model, optimizer, methods

    def epoch(accelerator, model, optimizer, methods):
        for number in range(3):
            accelerator.backward(loss_of(model, number))
            optimizer.step()
            optimizer.zero_grad()
            methods[1].step()
        methods[0].step()

    whole = begin()
    for each in range(4):
        epoch(*whole)
        if each == 1:
            whole[0].save_state(str(tmp_path / "state"))
    resumed = begin()
    resumed[0].load_state(str(tmp_path / "state"))
    assert [resumed[3][0].epoch, resumed[3][1].iterations] == [2, 6]
    for _ in range(2):
        epoch(*resumed)
    assert same(weights(resumed[1]), weights(whole[1]))
