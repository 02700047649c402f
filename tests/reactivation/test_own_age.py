"""UnitReactivation with UnitAdamW: what is new has an age of its own."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim import Optimizer

from tests.model import unit_networks as networks
from weight_evolution import UnitAdamW, UnitReactivation


def train(model, optimizer, x, iterations):
    for _ in range(iterations):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("choice", ["fill", "reset", "keep"])
def test_new_elements_have_age_zero(choice, capturable):
    torch.manual_seed(0)
    model = networks.ConvNet()
    optimizer = UnitAdamW(model.parameters(), 1e-2, capturable=capturable)
    reactivation = UnitReactivation(model, optimizer, every=1, threshold=0.7, optimizer_state=choice)
    x = torch.randn(*networks.IMAGES)
    train(model, optimizer, x, 5)
    before = copy.deepcopy(optimizer.state_dict())["state"]
    report = reactivation.step()
    assert 0 < report.total < sum(report.units.values())
    names = {parameter: number for number, parameter in enumerate(model.parameters())}
    mask = report.masks["hidden"]
    for parameter, axis in ((model.hidden.weight, 0), (model.hidden.bias, 0), (model.head.weight, 1)):
        state, was = optimizer.state[parameter], before[names[parameter]]
        if choice == "keep":
            assert "row_reset" not in state
            assert torch.equal(state["exp_avg"], was["exp_avg"])
            continue
        columns = report.masks["up_again"] if parameter is model.hidden.weight else torch.zeros(1, dtype=torch.bool)
        own = state["row_reset" if axis == 0 else "column_reset"]
        assert own.tolist() == [5.0 * chosen for chosen in mask.tolist()]
        if parameter is model.hidden.weight:
            assert state["column_reset"].tolist() == [5.0 * chosen for chosen in columns.tolist()]
        written = mask.view([-1, 1][: parameter.dim()]) | columns if axis == 0 else mask.view(1, -1).expand(2, 7)
        for key in ("exp_avg", "exp_avg_sq"):
            moved = state[key].view_as(parameter)
            assert (moved[written.expand_as(parameter)] == 0).all()
            assert torch.equal(moved[~written.expand_as(parameter)], was[key][~written.expand_as(parameter)])
        assert state["step"] == 5


def test_grouped_convolutions_count_by_channel():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 1, groups=2), nn.ReLU(), nn.Conv2d(6, 2, 1))
    with torch.no_grad():
        model[0].bias.fill_(5)
        model[0].bias[5] = -30
    optimizer = UnitAdamW(model.parameters(), 1e-3)
    x = torch.randn(4, 3, 2, 2)
    train(model, optimizer, x, 3)
    reactivation = UnitReactivation(model, optimizer, every=1, threshold=0.0, include=["0"])
    model(x)
    reactivation.step()
    assert optimizer.state[model[2].weight]["column_reset"].nonzero().flatten().tolist() == [5]
    assert (optimizer.state[model[2].weight]["exp_avg"][3:, 1] == 0).all()
    assert (model[2].weight[3:, 1] == 0).all()
    assert (model[2].weight[:3, 1] != 0).all()


def test_the_first_step_of_new_weights_is_of_the_learning_rate():
    """Under Adam with moments of 0 and the old counter it is several times that."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].bias[2] = -30
    steps = {}
    for make in (UnitAdamW, torch.optim.Adam):
        trial = copy.deepcopy(model)
        optimizer = make(trial.parameters(), lr=1e-3, weight_decay=0.0)
        x = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))
        train(trial, optimizer, x, 200)
        reactivation = UnitReactivation(trial, optimizer, every=1, threshold=0.0, optimizer_state="reset")
        trial(x)
        assert reactivation.step().masks["0"][2]
        before = trial[2].weight[:, 2].detach().clone()
        train(trial, optimizer, x, 1)
        steps[make] = float((trial[2].weight.detach()[:, 2] - before).abs().max())
    assert steps[UnitAdamW] == pytest.approx(1e-3, rel=1e-3)
    assert steps[torch.optim.Adam] > 1.3e-3


def test_resuming_with_ages():
    def make():
        torch.manual_seed(0)
        model = networks.mlp()
        optimizer = UnitAdamW(model.parameters(), 1e-2)
        return model, optimizer, UnitReactivation(model, optimizer, every=4, batches=2, threshold=0.8)

    def run(model, optimizer, reactivation, numbers):
        total = 0
        for number in numbers:
            x = torch.randn(10, 5, generator=torch.Generator().manual_seed(number))
            optimizer.zero_grad()
            functional.cross_entropy(model(x), torch.arange(10) % 3).backward()
            optimizer.step()
            report = reactivation.step()
            total += report.total if report else 0
        return total

    whole, first, second = make(), make(), make()
    for parts in (whole, first, second):
        parts[0].eval()
    assert run(*whole, range(13)) > 0
    assert run(*first, range(7)) > 0
    for part, other in zip(first, second, strict=True):
        other.load_state_dict(part.state_dict())
    run(*second, range(7, 13))
    for a, b in zip(whole[0].parameters(), second[0].parameters(), strict=True):
        assert torch.equal(a, b)


class Outer(Optimizer):
    """As accelerate's: it holds the optimizer that steps, and shares its groups and state."""

    def __init__(self, inner):
        self.inner = inner
        self.param_groups, self.state = inner.param_groups, inner.state


def test_an_optimizer_within_another():
    def states(wrap):
        torch.manual_seed(0)
        model = networks.ConvNet()
        optimizer = UnitAdamW(model.parameters(), 1e-2)
        reactivation = UnitReactivation(model, wrap(optimizer), every=1, threshold=0.7)
        train(model, optimizer, torch.randn(*networks.IMAGES), 5)
        assert reactivation.step().total > 0
        return [optimizer.state[parameter] for parameter in model.parameters()]

    plain, wrapped = states(lambda optimizer: optimizer), states(lambda optimizer: Outer(Outer(optimizer)))
    assert any("row_reset" in state for state in plain)
    for one, other in zip(plain, wrapped, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
