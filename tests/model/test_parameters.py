"""Which parameters of a model take part."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from weight_evolution import WeightEvolution


class Everything(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1d = nn.Conv1d(3, 6, 5)
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 10, 1))
        self.volume = nn.Conv3d(2, 5, (1, 3, 3))
        self.up = nn.ConvTranspose2d(7, 9, 4)
        self.up_in = nn.ConvTranspose2d(4, 12, 3, groups=4)
        self.up_out = nn.ConvTranspose2d(12, 4, 3, groups=4)
        self.sync = nn.SyncBatchNorm(4)
        self.plain = nn.BatchNorm1d(4, affine=False)
        self.instance = nn.InstanceNorm2d(4, affine=True)
        self.layer_norm = nn.LayerNorm(4)
        self.head = nn.Linear(10, 3)


def names(model, **options):
    return list(WeightEvolution(model, **options).state_dict()["filters"].items())


def test_all_kinds_in_module_order():
    assert names(Everything()) == [
        ("conv1d.weight", 6),
        ("features.0.weight", 8),
        ("features.1.weight", 8),
        ("features.1.bias", 8),
        ("features.2.weight", 10),
        ("volume.weight", 5),
        ("up.weight", 9),
        ("up_in.weight", 12),
        ("up_out.weight", 4),
        ("sync.weight", 4),
        ("sync.bias", 4),
    ]
    assert names(Everything(), linear_rate=0.1)[-1] == ("head.weight", 3)


@pytest.mark.parametrize(
    ("module", "filters"),
    [
        (nn.ConvTranspose2d(7, 9, 4), lambda w: [w[:, j] for j in range(9)]),
        (nn.ConvTranspose2d(4, 12, 3, groups=4), lambda w: [w[j // 3 : j // 3 + 1, j % 3] for j in range(12)]),
        (nn.ConvTranspose2d(12, 4, 3, groups=4), lambda w: [w[3 * j : 3 * j + 3, 0] for j in range(4)]),
        (nn.ConvTranspose1d(6, 6, 5, groups=6), lambda w: [w[j] for j in range(6)]),
    ],
)
def test_filters_of_transposed_convolutions(module, filters):
    report = WeightEvolution(module).preview()
    expected = torch.stack([f.abs().sum() / f.shape[0] for f in filters(module.weight.detach())])
    torch.testing.assert_close(report.importance_before["weight"], expected)


def test_transposed_convolution_with_views_evolves_in_place_and_after_a_move():
    module = nn.ConvTranspose2d(12, 4, 3, groups=4)
    evolution = WeightEvolution(module, conv_rate=1.0, schedule=lambda rate, epoch: 0.5, local_ratio=1.0)
    for _ in range(2):
        before = module.weight.detach().clone()
        assert sum(evolution.step().inferior.values()) > 0
        assert not torch.equal(module.weight, before)
        old = module.weight.data
        module.double()  # a new storage, which the views of the old one must not hide
        kept = old.clone()
        evolution.step()
        assert torch.equal(old, kept)
        module.float()


def test_include_and_exclude():
    model = Everything()
    assert names(model, include=["features"], exclude=[nn.BatchNorm2d]) == [
        ("features.0.weight", 8),
        ("features.2.weight", 10),
    ]
    assert [name for name, _ in names(model, include=[nn.ConvTranspose2d], exclude=["up_*"])] == ["up.weight"]
    evolution = WeightEvolution(model, exclude=["features.0"])
    assert evolution.skipped == {"features.0.weight": "excluded"}


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"include": ["featurs"]}, ValueError, "include: 'featurs' matches no module"),
        ({"exclude": [nn.RNN]}, ValueError, "exclude: .*RNN.* matches no module"),
        ({"exclude": "up"}, TypeError, "exclude must be a list"),
        ({"exclude": [3]}, TypeError, "exclude must hold module names or types, got 3"),
        ({"include": [nn.LayerNorm]}, ValueError, "no trainable convolution or BatchNorm"),
    ],
)
def test_bad_filters(options, error, message):
    with pytest.raises(error, match=message):
        WeightEvolution(Everything(), **options)


def test_frozen_parameters_are_left_alone():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    model[0].requires_grad_(False)
    evolution = WeightEvolution(model, schedule=lambda rate, epoch: 0.9, local_ratio=1.0)
    before = model[0].weight.clone()
    evolution.step()
    assert torch.equal(model[0].weight, before)
    assert evolution.skipped == {"0.weight": "frozen (requires_grad is False)"}


def test_shared_parameters_take_part_once():
    model = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    model[1].weight = model[0].weight
    evolution = WeightEvolution(model)
    assert list(evolution.state_dict()["filters"]) == ["0.weight"]
    assert evolution.skipped == {"1.weight": "shared with a parameter listed before"}


@pytest.mark.parametrize(
    "wrap",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        lambda conv: prune.random_unstructured(conv, "weight", 0.5),
    ],
)
def test_computed_weights_are_skipped(wrap):
    model = nn.Sequential(wrap(nn.Conv2d(3, 8, 3)), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8))
    evolution = WeightEvolution(model)
    assert list(evolution.state_dict()["filters"]) == ["1.weight", "2.weight", "2.bias"]
    assert evolution.skipped["0.weight"].startswith(
        "computed from other parameters (parametrize, weight_norm or prune)"
    )
    with pytest.raises(ValueError, match=r"left out: 0.weight: computed from other parameters"):
        WeightEvolution(model[:1])


def test_a_weight_computed_later_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    evolution = WeightEvolution(model)
    before = evolution.state_dict()
    prune.random_unstructured(model[0], "weight", 0.5)
    for call in (evolution.step, evolution.preview, evolution.state_dict):
        with pytest.raises(TypeError, match=r"0.weight is now computed from other parameters"):
            call()
    prune.remove(model[0], "weight")
    assert evolution.state_dict() == before
    evolution.step()


def test_lazy_modules_are_refused_until_built():
    model = nn.Sequential(nn.LazyConv2d(8, 3))
    with pytest.raises(TypeError, match="is not initialized yet; run one forward pass"):
        WeightEvolution(model)
    model(torch.zeros(1, 3, 8, 8))
    WeightEvolution(model)


def test_grouped_transposed_convolution_is_refused():
    with pytest.raises(TypeError, match=r"0.weight: the filters of a transposed convolution with 2 groups"):
        WeightEvolution(nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2)))


@pytest.mark.parametrize("model", [None, nn.Linear(3, 4), nn.Sequential()])
def test_nothing_to_evolve(model):
    with pytest.raises((TypeError, ValueError), match="model"):
        WeightEvolution(model)


def test_replaced_parameters_are_found():
    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    evolution = WeightEvolution(model, schedule=lambda rate, epoch: 0.5, local_ratio=1.0)
    evolution.step()
    old, model[0].weight = model[0].weight, nn.Parameter(torch.randn(12, 3, 3, 3))
    with pytest.raises(ValueError, match=r"0.weight has shape \(12, 3, 3, 3\), but its Conv2d says \[8, 3"):
        evolution.step()
    model[0].out_channels = 12
    kept = old.detach().clone()
    assert evolution.step().filters == {"0.weight": 12}
    assert torch.equal(old, kept)
