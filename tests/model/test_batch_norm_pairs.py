"""Which BatchNorm follows which conv."""

import copy

import pytest
import torch
from torch import nn

from tests.low_rank import networks
from weight_evolution import FilterGrafting, LowRankProjection

X = torch.ones(2, 3, 9, 9)


def pairs_of(model, **options):
    return LowRankProjection(model, **options).batch_norm_pairs


def test_pairs_come_from_the_graph():
    pairs = pairs_of(networks.branches())
    assert pairs.source == "torch.fx"
    assert pairs.names == networks.PAIRS
    assert "2 places" in pairs.reasons["twice_used"]
    assert "add" in pairs.reasons["left"]
    assert "relu" in pairs.reasons["bare"]
    for name in networks.PAIRS:
        assert name in str(pairs)


def test_pairs_from_torch_export_are_the_same():
    class Branching(networks.Branches):
        def forward(self, x):
            assert x.shape[0] > 0 or x.shape[1] > 0
            return super().forward(x) if x.shape[1] == 3 else x

    with pytest.warns(UserWarning, match="could not be traced"):
        assert pairs_of(Branching()).source == "not traced"
    model = Branching()
    model.stem_norm.eval()
    modes = [module.training for module in model.modules()]
    buffers = {name: tensor.clone() for name, tensor in model.named_buffers()}
    pairs = pairs_of(model, example_inputs=X)
    assert pairs.source == "torch.export"
    assert pairs.names == networks.PAIRS
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, buffers[name]) for name, tensor in model.named_buffers())


def test_export_is_used_where_fx_cannot_trace():
    pairs = pairs_of(networks.Untraceable(), example_inputs=X)
    assert pairs.source == "torch.export"
    assert pairs.names == {"first": "first_norm", "second": "second_norm"}


def test_untraceable_model_gets_no_pairs_and_says_so():
    with pytest.warns(UserWarning, match=r"first, second.*example_inputs.*batch_norm_pairs"):
        projection = LowRankProjection(networks.UntraceableByAll(), example_inputs=X)
    pairs = projection.batch_norm_pairs
    assert pairs.source == "not traced"
    assert pairs.names == {"first": None, "second": None}
    assert len(pairs.errors) == 2
    assert "not traced" in str(pairs)
    assert projection.step().batch_norms == {"first": None, "second": None}


def test_pairs_by_name_need_no_tracing():
    given = {"first": "first_norm", "second": None}
    pairs = pairs_of(networks.UntraceableByAll(), batch_norm_pairs=given)
    assert pairs.source == "given"
    assert pairs.names == given


def test_a_name_overrides_the_graph():
    pairs = pairs_of(networks.branches(), batch_norm_pairs={"left": "sum_norm", "stem": None})
    assert pairs.names == networks.PAIRS | {"left": "sum_norm", "stem": None}


def test_no_pairs_without_rectification():
    pairs = pairs_of(networks.UntraceableByAll(), rectify_batch_norm=False)
    assert pairs.source == "off"
    assert set(pairs.names.values()) == {None}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"nowhere": None}, r"'nowhere' is not a layer.*'stem'"),
        ({"depthwise": "depthwise_norm"}, "'depthwise' is not a layer"),
        ({"stem": "left"}, r"'left' is not a BatchNorm.*'stem_norm'"),
        ({"stem": "sum_norm"}, "16 features.*12 outputs"),
    ],
)
def test_bad_names(given, message):
    with pytest.raises(ValueError, match=message):
        LowRankProjection(networks.branches(), batch_norm_pairs=given)


def test_names_must_be_a_dict_and_used():
    with pytest.raises(TypeError, match="batch_norm_pairs must be a dict"):
        LowRankProjection(networks.branches(), batch_norm_pairs=["stem"])
    with pytest.raises(ValueError, match="no effect with rectify_batch_norm=False"):
        LowRankProjection(networks.branches(), batch_norm_pairs={"stem": None}, rectify_batch_norm=False)


def test_norm_without_running_variance_is_no_pair():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False))
    pairs = pairs_of(model)
    assert pairs.names == {"0": None}
    assert "running variance" in pairs.reasons["0"]
    with pytest.raises(ValueError, match="keeps no running variance"):
        LowRankProjection(model, batch_norm_pairs={"0": "1"})


def test_a_conv_called_twice():
    class Twice(nn.Module):
        def __init__(self, norms):
            super().__init__()
            self.conv = nn.Conv2d(6, 6, 3, padding=1)
            self.norms = nn.ModuleList(norms)

        def forward(self, x):
            return self.norms[-1](self.conv(self.norms[0](self.conv(x))))

    norm = nn.BatchNorm2d(6)
    assert pairs_of(Twice([norm])).names == {"conv": "norms.0"}
    pairs = pairs_of(Twice([norm, nn.BatchNorm2d(6)]))
    assert pairs.names == {"conv": None}
    assert "different BatchNorms" in pairs.reasons["conv"]


def test_layer_outside_the_traced_graph():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    model[1].unused = nn.Conv2d(4, 8, 3)
    assert pairs_of(model).reasons["1.unused"] == "not called in the traced graph"


def test_linear_has_a_norm_only_by_name():
    model = nn.Sequential(nn.Linear(9, 7), nn.BatchNorm1d(7))
    assert pairs_of(model, linear=True).names == {"0": None}
    assert pairs_of(model, linear=True, batch_norm_pairs={"0": "1"}).names == {"0": "1"}


def test_wrapped_models_are_seen_through():
    wrapped = nn.DataParallel(networks.branches())
    assert pairs_of(wrapped).names == networks.PAIRS
    assert pairs_of(torch.compile(networks.branches(), backend="eager")).names == networks.PAIRS


@pytest.mark.parametrize(
    "method",
    [LowRankProjection, lambda model: FilterGrafting([model, copy.deepcopy(model)], level="filter")],
    ids=["low-rank", "grafting"],
)
def test_finding_pairs_leaves_the_model_as_it_was(method):
    class Counting(networks.Branches):
        def forward(self, x):
            self.calls += 1
            self.average.mul_(0.9)
            self.remembered = x + torch.rand(1)
            return super().forward(x)

    torch.manual_seed(0)
    model = Counting()
    model.calls = 0
    model.register_buffer("average", torch.ones(5))
    model.register_forward_hook(lambda *_: pytest.fail("a hook was called"))
    attributes, state = set(vars(model)), torch.get_rng_state()
    before = {name: (tensor.clone(), tensor._version) for name, tensor in model.state_dict().items()}
    method(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert set(vars(model)) == attributes
    assert model.calls == 0
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name][0]), name
        assert tensor._version == before[name][1], name


def test_names_are_those_of_the_model_under_any_wrapper():
    wrapped = nn.DataParallel(networks.branches())
    assert LowRankProjection(wrapped, exclude=["last", "ste*"]).layers == ["left", "right", "bare", "twice_used"]
    assert LowRankProjection(wrapped, ranks={"bare": 3}).ranks == {"bare": 3}
    given = {"left": "sum_norm", "stem": None}
    assert pairs_of(wrapped, batch_norm_pairs=given).names == networks.PAIRS | given


def test_a_transposed_convolution_is_paired_by_its_outputs():
    def network():
        return nn.Sequential(nn.ConvTranspose2d(4, 6, 3), nn.BatchNorm2d(6))

    grafting = FilterGrafting([network(), network()], level="filter", batch_norm_pairs={"0": "1"})
    assert grafting.step().whole_layer == {}
    with pytest.raises(ValueError, match="'1' has 6 features, the layer 4 outputs"):
        FilterGrafting(
            [nn.Sequential(nn.ConvTranspose2d(6, 4, 3), nn.BatchNorm2d(6)) for _ in range(2)],
            level="filter",
            batch_norm_pairs={"0": "1"},
        )
