"""Steps by graphs against steps without: a capture on a CPU keeps the work for later, as a GPU's does."""

import copy

import pytest
import torch
from torch import nn

from experiments.graphed import GraphedSteps
from experiments.stacked import Stack
from experiments.study_networks import make_network
from tests.pretend_gpu import on_gpu, pretend_gpu
from weight_evolution import AsynchronousUpdate, UnitReactivation


def networks():
    torch.manual_seed(0)
    return [nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).double() for _ in range(2)]


def optimizer(network, lr):
    return torch.optim.SGD(network.parameters(), lr, momentum=0.9)


class Captures:
    """Replays call the work anew; what was captured with other tensors would not see the batch."""

    def __init__(self):
        self.captured = self.replayed = 0

    def __call__(self, work):
        self.captured += 1

        def replay():
            self.replayed += 1
            work()

        return replay


def train(capture, methods, steps=20):
    trained = networks()
    optimizers = [optimizer(own, 0.1) for own in trained]
    step = GraphedSteps(Stack(trained, optimizers), capture)
    actions = [make(own, its) for make, own, its in zip(methods, trained, optimizers, strict=True)]
    draws = torch.Generator().manual_seed(1)
    for number in range(steps):
        for its in optimizers:
            its.param_groups[0]["lr"] = 0.1 / (1 + number)
        step(torch.randn(2, 5, 1, 8, 8, generator=draws).double(), torch.randint(3, (2, 5), generator=draws))
        for act in actions:
            act()
    return trained


def plain(network, its):
    return lambda: None


def measured(network, its):
    return UnitReactivation(network, its, every=5, batches=2, threshold=0.8).step


def masked(network, its):
    update = AsynchronousUpdate(its, network, 0.5)
    return lambda: update


@pytest.mark.parametrize(
    ("methods", "captured", "replayed"),
    [
        ((plain, plain), 1, 17),
        ((plain, measured), 1, 17 - 8),  # it measures in two of five
        ((plain, masked), 1, 17),
        ((masked, measured), 1, 17 - 8),
    ],
)
def test_training_is_that_without_graphs(methods, captured, replayed):
    captures = Captures()
    wanted = train(None, methods)
    for one, other in zip(train(captures, methods), wanted, strict=True):
        for tensor, right in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(tensor, right)
    assert (captures.captured, captures.replayed) == (captured, replayed)


def test_nothing_waits_that_is_captured(monkeypatch):
    """As a graph must; and the rates are on their way without."""
    pytest.importorskip("triton")
    torch.manual_seed(0)
    trained = [make_network("vgg", 3, 10, 0.25) for _ in range(2)]
    with pretend_gpu(monkeypatch) as gpu:
        stack = Stack([on_gpu(own) for own in trained], [optimizer(own, 0.1) for own in trained], form="products")
        batch = torch.randn(2, 4, 3, 8, 8).to("cuda"), torch.zeros(2, 4, dtype=torch.int64).to("cuda")
        gpu.events.clear()
        stack.backward(*batch)
        stack.update()
        assert len(gpu.events) > 100
        assert gpu.count("wait") == gpu.count("upload") == 0
        stack.read_rates()
        assert (gpu.count("wait"), gpu.count("upload")) == (0, 1)


def test_a_capture_that_fails(capsys):
    def refuses(work):
        raise RuntimeError("operation not permitted when stream is capturing")

    wanted = train(None, (plain, plain))
    for one, other in zip(train(refuses, (plain, plain)), wanted, strict=True):
        assert torch.equal(one[0].weight, other[0].weight)
    assert capsys.readouterr().err.count("not permitted") == 1


def test_hooks_that_come_later():
    """A graph of the whole step is not replayed where an optimizer has got step hooks since, and vice versa."""
    captures = Captures()
    trained = networks()
    optimizers = [optimizer(own, 0.1) for own in trained]
    step = GraphedSteps(Stack(trained, optimizers), captures)
    batch = torch.randn(2, 5, 1, 8, 8).double(), torch.zeros(2, 5, dtype=torch.int64)
    for _ in range(5):
        step(*batch)
    update = AsynchronousUpdate(optimizers[0], trained[0], 0.25)
    before = copy.deepcopy(trained)
    step(*batch)
    changed = [
        int((own[0].weight != old[0].weight).flatten(1).any(1).sum()) for own, old in zip(trained, before, strict=True)
    ]
    assert changed == [1, 4]
    update.detach()
    before = copy.deepcopy(trained)
    step(*batch)
    assert all((own[0].weight != old[0].weight).all() for own, old in zip(trained, before, strict=True))
    assert captures.captured == 2
