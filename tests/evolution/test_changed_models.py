"""Models that change between steps, and copies of model and method."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from weight_evolution import WeightEvolution


def network():
    torch.manual_seed(1)
    model = nn.Sequential(
        *(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 10, 1), nn.BatchNorm2d(10))
    )
    with torch.no_grad():
        for conv in (model[0], model[3]):
            conv.weight.mul_(10.0 ** (-3 * torch.rand(len(conv.weight), 1, 1, 1)))
    return model


def constant(rate, epoch):
    return rate


def evolving(model, **options):
    return WeightEvolution(model, conv_rate=0.5, schedule=constant, local_ratio=0.5, **options)


def test_frozen_and_thawed_parameters_are_followed():
    model = network()
    evolution = evolving(model)
    evolution.step()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    report = evolution.step()
    assert list(report.filters) == ["1.weight", "1.bias", "3.weight", "4.weight", "4.bias"]
    assert torch.equal(model[0].weight, before)
    assert evolution.skipped == {"0.weight": "frozen (requires_grad is False)"}
    model[0].requires_grad_(True)
    assert evolution.step().inferior["0.weight"] > 0
    assert not torch.equal(model[0].weight, before)


def test_replaced_and_added_layers_are_followed():
    model = network()
    evolution = evolving(model)
    evolution.step()
    old = model[3]
    model[3], model[4] = nn.Conv2d(12, 9, 3), nn.BatchNorm2d(9)
    model.append(nn.Conv2d(9, 20, 1))
    model.append(nn.BatchNorm2d(20))
    kept = old.weight.clone()
    assert list(evolution.step().filters.items())[3:] == [
        *(("3.weight", 9), ("4.weight", 9), ("4.bias", 9), ("5.weight", 20), ("6.weight", 20), ("6.bias", 20))
    ]
    assert torch.equal(old.weight, kept)
    del model[5:]
    assert len(evolution.preview().filters) == 6


def test_a_group_that_leaves_takes_its_counter_along():
    model = network()
    evolution = WeightEvolution(model, conv_rate=0.9, local_ratio=0.0, starvation_divisor=0.25)
    evolution.step()
    assert evolution.state_dict()["starvation"]["conv"] == 2
    for norm in (model[1], model[4]):
        norm.weight.requires_grad_(False)
    assert evolution.step().counters["conv"] == 4
    assert list(evolution.state_dict()["starvation"]) == ["conv", "norm_shift"]


def test_weights_transposed_in_place():
    model = nn.Sequential(nn.ConvTranspose2d(6, 6, 1, groups=6), nn.BatchNorm2d(6))
    evolution = WeightEvolution(model)
    evolution.preview()
    model[0].weight.data = model[0].weight.data.transpose(0, 1)  # [1, 6]: no whole weight any more
    with pytest.raises(ValueError, match=r"0.weight has shape \(1, 6, 1, 1\)"):
        evolution.step()
    square = nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6))
    with torch.no_grad():
        square[0].weight.copy_(torch.arange(1, 37).view(6, 6, 1, 1))
    evolution = WeightEvolution(square)
    rows = evolution.preview().importance_before["0.weight"]
    square[0].weight.data = square[0].weight.data.transpose(0, 1)
    assert not torch.equal(evolution.preview().importance_before["0.weight"], rows)
    assert torch.equal(evolution.preview().importance_before["0.weight"], square[0].weight.abs().sum((1, 2, 3)) / 6)


@pytest.mark.parametrize("shift_rate", [0.5, "inferior"])
@pytest.mark.parametrize("mode", [torch.inference_mode, lambda: torch.device("meta")], ids=["inference", "meta"])
def test_calls_in_another_mode_and_out_of_it(mode, shift_rate):
    model, plain = network(), network()
    model.append(nn.Conv2d(10, 4, 1))
    plain.append(copy.deepcopy(model[-1]))
    with mode():
        evolution = evolving(model, norm_shift_rate=shift_rate)
    other = evolving(plain, norm_shift_rate=shift_rate)
    for now in (torch.enable_grad, mode, torch.enable_grad, mode):
        with now():
            report = str(evolution.step())
            model[-1].requires_grad_(not model[-1].weight.requires_grad)  # which makes the next call look anew
            state = evolution.state_dict()
        assert report == str(other.step())
        plain[-1].requires_grad_(not plain[-1].weight.requires_grad)
        evolution.load_state_dict(state)
    assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_copy_made_in_inference_mode():
    model = network().append(nn.Flatten()).append(nn.Linear(10, 8)).append(nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(2, 3, 3, 3)).sum().backward()
    optimizer.step()
    evolution = evolving(model, linear_rate=0.5, optimizer=optimizer, optimizer_state="reset")
    with torch.inference_mode():
        copied, its_optimizer, of_copy = copy.deepcopy((model, optimizer, evolution))
    bias = model[6].bias.clone()
    evolution.step()
    of_copy.step()
    assert not torch.equal(model[6].bias, bias)
    for parameter, other in zip(model.parameters(), copied.parameters(), strict=True):
        assert torch.equal(parameter, other)
        momentum = optimizer.state[parameter]["momentum_buffer"]
        assert torch.equal(momentum, its_optimizer.state[other]["momentum_buffer"])


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "save"])
def test_a_copy_works_on_the_copied_model(how):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    evolution = evolving(model, optimizer=optimizer)
    evolution.step()
    parts = model, optimizer, evolution
    if how == "deepcopy":
        other, _, twin = copy.deepcopy(parts)
    elif how == "pickle":
        other, _, twin = pickle.loads(pickle.dumps(parts))
    else:
        file = io.BytesIO()
        torch.save(parts, file)
        file.seek(0)
        other, _, twin = torch.load(file, weights_only=False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = twin.step()
    assert sum(report.inferior.values()) > 0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not torch.equal(other[0].weight, model[0].weight)
    evolution.step()
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())
    other[0].requires_grad_(False)
    assert "0.weight" in twin.preview().filters.keys() ^ evolution.preview().filters.keys()


def test_a_pickled_report_is_small_and_holds_no_model():
    model = nn.Sequential(nn.Conv2d(64, 128, 3), nn.BatchNorm2d(128))
    report = WeightEvolution(model).step()
    data = pickle.dumps(report)
    assert len(data) < 20_000
    assert str(pickle.loads(data)) == str(report)


@pytest.mark.parametrize("share", ["parameter", "memory"])
@pytest.mark.parametrize("later", [False, True])
def test_weights_that_are_shared(share, later):
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3), nn.Conv2d(3, 5, 3))
    evolution = WeightEvolution(model, conv_rate=0.9, local_ratio=1.0) if later else None
    if share == "parameter":
        model[2].weight = model[0].weight
    else:
        model[2].weight.data = model[0].weight.data
    evolution = evolution or WeightEvolution(model, conv_rate=0.9, local_ratio=1.0)
    report = evolution.step()
    assert "0.weight" in report.donors
    assert "2.weight" not in report.donors
    assert torch.equal(model[0].weight, model[2].weight)


def test_a_copy_that_changes_later_writes_to_the_copied_optimizer():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(2, 3, 5, 5)).square()[:, :3].sum().backward()
    optimizer.step()
    evolution = evolving(model, optimizer=optimizer, optimizer_state="reset")
    copied, copied_optimizer, copied_evolution = copy.deepcopy((model, optimizer, evolution))
    copied[1].weight.requires_grad_(False)  # what takes part is found anew
    before = copy.deepcopy(optimizer.state_dict()["state"])
    report = copied_evolution.step()
    replaced = report.donors["0.weight"] >= 0
    assert replaced.any()
    buffer = copied_optimizer.state[copied[0].weight]["momentum_buffer"]
    changed = copied[0].weight != model[0].weight
    assert not buffer[changed].any()
    assert buffer.any()
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(after[i]["momentum_buffer"], before[i]["momentum_buffer"]) for i in before)
