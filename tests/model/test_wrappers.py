"""Wrappers are recognized by their class, and do not show in names."""

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from weight_evolution.model.tracing import trace
from weight_evolution.model.wrappers import inside, named_modules, named_parameters, unwrap


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))


def compiled(module):
    return torch.compile(module, backend="eager")


WRAPPERS = [compiled, nn.DataParallel, checkpoint_wrapper]


class Delegating(nn.Module):
    """What it does not have itself, the model inside answers for it, whatever the attribute."""

    def __init__(self, model):
        super().__init__()
        self.head = nn.Conv2d(4, 4, 1)
        self.body = model

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("body"), name)

    def forward(self, x):
        return self.head(self.body(x))


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_wrapped_model_has_the_names_of_the_model(wrap):
    model = net()
    wrapped = nn.DataParallel(wrap(model))
    assert unwrap(wrapped) is model
    assert list(named_modules(wrapped)) == list(model.named_modules())
    assert [name for name, _ in named_parameters(wrapped)] == [name for name, _ in model.named_parameters()]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_wrapped_submodules_have_the_names_of_the_model(wrap):
    plain, model = net(), net()
    model[0] = wrap(model[0])
    model[1][0] = wrap(model[1][0])
    model[1] = wrap(model[1])
    names = [name for name, _ in plain.named_modules()]
    assert [name for name, _ in named_modules(model)] == names
    assert not [module for _, module in named_modules(model) if inside(module) is not None]
    assert [name for name, _ in named_parameters(model)] == [name for name, _ in plain.named_parameters()]
    assert list(trace(model).calls.values()) == ["0", "1.0", "1.1"]


def test_as_torch_names_them_without_wrappers():
    model = net()
    model[1].add_module("again", model[0])
    model[1].tied = nn.Parameter(torch.ones(3))
    model[1].twice = model[1].tied
    assert list(named_modules(model)) == list(model.named_modules())
    parameters = list(model.named_parameters())
    assert [name for name, _ in named_parameters(model)] == [name for name, _ in parameters]
    assert all(a is b for (_, a), (_, b) in zip(named_parameters(model), parameters, strict=True))


def test_a_module_that_delegates_is_no_wrapper():
    model = Delegating(compiled(net()))
    assert isinstance(model._orig_mod, nn.Module)
    assert unwrap(model) is model
    assert [name for name, _ in named_modules(model)] == [
        "",
        "head",
        "body",
        "body.0",
        "body.1",
        "body.1.0",
        "body.1.1",
    ]


def test_a_subclass_with_layers_of_its_own_is_no_wrapper():
    class WithHead(nn.DataParallel):
        def __init__(self, model):
            super().__init__(model)
            self.head = nn.Conv2d(4, 4, 1)

    model = WithHead(net())
    assert unwrap(model) is model
    assert [name for name, _ in named_modules(model)][:2] == ["", "module"]
