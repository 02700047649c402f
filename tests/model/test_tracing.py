"""Tracing changes nothing: not the model, not the random states, not torch's modes."""

import copy
import functools
import random
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from tests.low_rank.networks import Untraceable
from tests.model.unit_networks import vgg
from weight_evolution.model.copies import copy_without_values
from weight_evolution.model.tracing import NotTracedError, trace
from weight_evolution.model.unit_graph import find_units

X = torch.ones(2, 3, 9, 9)


class Restless(nn.Module):
    """Everything that a forward may do beside computing."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("average", torch.ones(8))
        self.counter = 0
        self.seen = []
        self.last = None

    def forward(self, x):
        self.counter += 1
        self.calls += 1
        self.average.mul_(0.5)
        self.last = x
        self.seen.append(x)
        self.noise = torch.rand(2) + np.random.rand() + random.random()  # noqa: NPY002
        self.train(False)
        torch.set_grad_enabled(False)
        torch.set_autocast_enabled("cpu", True)
        torch.set_default_dtype(torch.float64)
        return self.inner(self.norm(self.conv(x)))


def everything(model):
    """All that a module is, comparable."""
    state = []
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            tensors = isinstance(value, dict) and all(isinstance(v, torch.Tensor) for v in value.values())
            if tensors:
                value = {k: (v.tolist(), v._version, v.data_ptr(), v.requires_grad) for k, v in value.items()}
            state.append((name, attribute, repr(value)))
    return state


def modes():
    return (
        torch.is_grad_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch.get_default_dtype(),
        torch.get_rng_state().tolist(),
        random.getstate(),
        repr(np.random.get_state()),  # noqa: NPY002
    )


@pytest.mark.parametrize("way", ["torch.fx", "torch.export"])
def test_model_and_modes_are_as_before(way):
    class Branching(Restless):
        def forward(self, x):
            if way == "torch.export" and x.shape[0] != 2:
                raise ValueError("two images")
            return super().forward(x) if way == "torch.fx" else self.norm(self.conv(x))

    model = Branching()
    seen = []
    model.inner.register_forward_hook(lambda *_: seen.append("hook"))
    model.inner.register_forward_pre_hook(lambda *_: seen.append("pre-hook"))
    before, modes_before = everything(model), modes()
    traced = trace(model, (X,))
    assert traced.source == way
    assert {"conv", "norm"} <= set(traced.calls.values())
    assert everything(model) == before
    assert modes() == modes_before
    assert seen == []


def test_global_hooks_are_not_called():
    class Branching(nn.Sequential):
        def forward(self, x):
            return super().forward(x) if x.shape[0] == 2 else x

    seen = []
    handle = nn.modules.module.register_module_forward_hook(lambda *_: seen.append("global"))
    try:
        trace(nn.Sequential(nn.Conv2d(3, 4, 1)))
        with pytest.raises(NotTracedError, match=r"torch\.export: not tried, as it would call the global hooks"):
            trace(Branching(nn.Conv2d(3, 4, 1)), (X,))
    finally:
        handle.remove()
    assert seen == []


def test_a_trace_that_fails_changes_nothing_either():
    class Failing(Restless):
        def forward(self, x):
            super().forward(x)
            raise RuntimeError("half way")

    model = Failing()
    before, modes_before = everything(model), modes()
    with pytest.raises(NotTracedError, match="half way"):
        trace(model, (X,))
    assert everything(model) == before
    assert modes() == modes_before


def test_the_copy_has_no_memory_for_weights():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(100, 100))
    model.kept = torch.ones(100, 100, requires_grad=True) * 2
    model.register_buffer("mask", torch.ones(100, 100))
    model.teachers = [nn.Linear(100, 100)]
    model.register_buffer("flag", torch.tensor(True))
    model[1].weight.grad = torch.ones(100, 100)
    model[0].weight.data = model[0].weight.data.contiguous(memory_format=torch.channels_last)
    copied = copy_without_values(model)
    assert all(p.is_meta for p in copied.parameters())
    assert copied.kept.is_meta
    assert copied.mask.is_meta
    assert copied.teachers[0].weight.is_meta
    assert not model.teachers[0].weight.is_meta
    assert bool(copied.flag)
    assert copied[1].weight.grad is None
    assert copied[0].weight.stride() == model[0].weight.stride()
    assert [p.requires_grad for p in copied.parameters()] == [p.requires_grad for p in model.parameters()]


def test_shared_weights_are_shared_in_the_copy():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    copied = copy_without_values(model)
    assert copied[0].weight is copied[1].weight


def test_forward_may_branch_on_a_flag():
    class Flag(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.register_buffer("ready", torch.tensor(True))

        def forward(self, x):
            return self.conv(x) if self.ready else x

    assert list(trace(Flag()).calls.values()) == ["conv"]


@pytest.mark.parametrize(
    "prepare",
    [
        lambda conv: prune.random_unstructured(conv, "weight", 0.5),
        lambda conv: nn.utils.spectral_norm(conv),
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        lambda conv: conv.register_forward_hook(functools.partial(lambda lock, *_: None, threading.Lock())),
    ],
)
def test_computed_weights_and_hooks_do_not_hinder(prepare):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    prepare(model[0])
    model(X)
    assert list(trace(model).calls.values()) == ["0", "1"]


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
def test_script_modules_are_called_not_entered():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), torch.jit.script(nn.Sequential(nn.ReLU())))
    assert list(trace(model).calls.values()) == ["0", "1"]


def test_lazy_modules_stay_lazy():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.LazyConv2d(5, 1))
    assert list(trace(model).calls.values()) == ["0", "1"]
    assert isinstance(model[1], nn.LazyConv2d)


def test_what_cannot_be_copied_is_not_traced():
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    model.lock = threading.Lock()
    with pytest.raises(
        NotTracedError, match=r"the model cannot be copied: lock cannot \(cannot pickle '_thread.lock' obj"
    ):
        trace(model, (X,))


def test_what_a_copy_would_share_is_not_traced():
    model = Restless()
    forward = model.forward
    model.forward = lambda x: forward(x)
    with pytest.raises(NotTracedError, match="forward is a function that holds a Restless of its own"):
        trace(model, (X,))
    assert model.counter == 0

    class Single(Restless):
        def __deepcopy__(self, memo):
            return self

    single = nn.Sequential(Single())
    with pytest.raises(NotTracedError, match=r"0 copies itself \(Single\)"):
        trace(single)
    assert single[0].counter == 0


def test_a_forward_bound_to_the_module_is_copied_with_it():
    model = Restless()
    model.forward = functools.partial(Restless.forward, model)
    copied = copy_without_values(model)
    assert copied.forward.args[0] is copied
    assert model.counter == 0


def test_other_threads_go_on():
    """fx patches nn.Module for the whole process while it traces."""

    class Waiting(nn.Sequential):
        def forward(self, x):
            started.set()
            assert finished.wait(20)
            return super().forward(x)

        def __deepcopy__(self, memo):
            return Waiting(*copy.deepcopy(list(self), memo))

    started, finished = threading.Event(), threading.Event()
    other, results = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.ReLU())), []

    def run():
        started.wait(20)
        try:
            results.append(other(torch.ones(3)))
        except Exception as error:
            results.append(error)
        finished.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert list(trace(Waiting(nn.Conv2d(3, 4, 1))).calls.values()) == ["0"]
    thread.join()
    assert isinstance(results[0], torch.Tensor)


@pytest.mark.parametrize("model", [Untraceable, lambda: vgg(lambda x: x.reshape(x.shape[0], 20))], ids=["export", "fx"])
def test_example_inputs_may_be_on_another_device(model):
    """As before a Trainer moves the model; the meta device stands for a GPU."""
    images = torch.zeros(2, 3, 8, 8)
    there = model().to("meta")
    here, expected = find_units(there, example_inputs=(images,)), find_units(model(), example_inputs=(images,))
    assert here.errors == expected.errors
    assert {name: layer.units for name, layer in here.layers.items()} == {
        name: layer.units for name, layer in expected.layers.items()
    }
    assert images.device.type == "cpu"


class Regions(nn.Module):
    """Convolutions under autocast and no_grad, nested; with a branch that torch.fx cannot trace."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 1), nn.Conv2d(5, 6, 1)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        if x.shape[1] != 3:
            raise ValueError("three channels")
        with torch.autocast("cpu", torch.bfloat16):
            x = torch.relu(self.first(x))
            with torch.no_grad():
                y = torch.relu(self.second(x))
            x = torch.relu(self.third(y))
        return self.head(x.float().mean((2, 3)))


@pytest.mark.parametrize("outside", [False, True])
def test_regions_are_part_of_the_graph(outside):
    """Of a forward with them, and of one that accelerate put under autocast."""
    model = Regions()
    if outside:
        model.forward = torch.autocast("cpu", torch.bfloat16)(Regions.forward).__get__(model)
    found = find_units(model, example_inputs=(torch.zeros(2, 3, 8, 8),))
    assert {name: layer.units for name, layer in found.layers.items()} == {"first": 4, "second": 5, "third": 6}
    assert {name: [reader.name for reader in layer.outgoing] for name, layer in found.layers.items()} == {
        "first": ["second"], "second": ["third"], "third": ["head"]
    }  # fmt: skip
