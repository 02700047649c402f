"""Both forms of the asynchronous update on a GPU: the subsets of the CPU, CUDA graphs, scalers, one rank over nccl."""

import os

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.asynchronous.twins import BATCHES, make_net, snapshot
from tests.gpu import CPU, DEVICE, captured, full_float32, needs_device, needs_gpu  # noqa: F401
from tests.waiting import no_waiting
from weight_evolution import AsynchronousSGD, AsynchronousUpdate, UnitReactivation, WeightEvolution

pytestmark = [needs_device, pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("full_float32")]
FORMS = ("sgd", "update of sgd", "update of adamw", "update of capturable adamw")


def make(form, model):
    """The optimizer, and what can tell its subsets."""
    if form == "sgd":
        optimizer = AsynchronousSGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, model=model, seed=7)
        return optimizer, optimizer
    if form == "update of sgd":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    else:
        capturable = "capturable" in form and DEVICE.type == "cuda"
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, capturable=capturable)
    return optimizer, AsynchronousUpdate(optimizer, model, seed=7)


def set_gradients(model, seed=0):
    """The same on every device, always in the same memory."""
    draws = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.grad is None:
            parameter.grad = torch.empty_like(parameter)
        parameter.grad.copy_(torch.randn(parameter.shape, generator=draws))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("form", FORMS[:3])
def test_the_same_filters_move_as_on_the_cpu(form, memory_format):
    results = []
    for device in (DEVICE, CPU):
        model = make_net().to(device).to(memory_format=memory_format)
        optimizer, source = make(form, model)
        drawn = []
        for number in range(4):
            set_gradients(model, number)
            drawn.append(source.selection())
            optimizer.step()
        assert source.steps == 4
        results.append((snapshot(model), drawn))
    (here, drawn), (there, expected) = results
    for one, other in zip(drawn, expected, strict=True):
        assert all(torch.equal(moves, other[name]) for name, moves in one.items())
    for name, tensor in there.items():
        torch.testing.assert_close(here[name].to(CPU), tensor, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@needs_gpu
@pytest.mark.parametrize("form", ["sgd", "update of sgd", "update of capturable adamw"])
def test_a_captured_step_draws_anew_at_each_replay(form):
    def run(graphed):
        model = make_net().to(DEVICE)
        set_gradients(model)
        optimizer, source = make(form, model)
        if graphed:
            graph = captured(optimizer.step)
        else:
            for _ in range(3):
                optimizer.step()
        weights = []
        for number in range(5):
            set_gradients(model, number)
            graph.replay() if graphed else optimizer.step()
            weights.append(snapshot(model))
        assert source.steps == 8
        return weights

    for step, (replayed, eager) in enumerate(zip(run(True), run(False), strict=True)):
        for name, tensor in eager.items():
            assert torch.equal(replayed[name], tensor), (step, name)


@needs_gpu
@pytest.mark.parametrize("form", FORMS)
def test_a_step_does_not_wait(form):
    model = make_net().to(DEVICE)
    optimizer, _ = make(form, model)
    for _ in range(2):
        set_gradients(model)
        optimizer.step()
    with no_waiting():
        optimizer.step()


@needs_gpu
@pytest.mark.parametrize("form", FORMS)
def test_a_step_that_the_scaler_leaves_out_draws_nothing(form):
    model = make_net().to(DEVICE)
    optimizer, source = make(form, model)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40, growth_interval=1000)
    left_out = 0
    for number in range(40):
        images, labels = (part.to(DEVICE) for part in BATCHES[number % 4])
        before = scaler.get_scale()
        with torch.autocast("cuda", torch.float16):
            loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        left_out += scaler.get_scale() < before
    assert 0 < left_out < 40
    assert source.steps == 40 - left_out
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.fixture
def rank():
    """The only one of a group, over nccl on a GPU."""
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("nccl" if DEVICE.type == "cuda" else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_all_methods_in_data_parallel_training(rank):
    """One rank gives what training without ranks does."""

    def run(parallel):
        model = make_net().to(DEVICE)
        wrapped = DistributedDataParallel(model) if parallel else model
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.05, momentum=0.9)
        update = AsynchronousUpdate(optimizer, wrapped, seed=3)
        reactivation = UnitReactivation(wrapped, optimizer, every=2, batches=2, threshold=0.5, seed=1)
        evolution = WeightEvolution(wrapped, optimizer=optimizer, conv_rate=0.5, local_ratio=0.9)
        revived = 0
        for images, labels in BATCHES:
            optimizer.zero_grad()
            nn.functional.cross_entropy(wrapped(images.to(DEVICE)), labels.to(DEVICE)).backward()
            optimizer.step()
            report = reactivation.step()
            revived += 0 if report is None else report.total
        evolution.step(epoch=0)
        assert update.steps == len(BATCHES)
        return snapshot(model), revived

    (parallel, revived), (alone, expected) = run(True), run(False)
    assert revived == expected
    for name, tensor in alone.items():
        torch.testing.assert_close(parallel[name], tensor, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
