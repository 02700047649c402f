"""Models that change under a projection, and copies of both."""

import copy
import io
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from tests.low_rank import networks
from tests.low_rank.svd_oracle import project, rank_of, scale_of
from tests.low_rank.test_projection import expect_weight
from weight_evolution import LowRankProjection

READS = {
    "layers": lambda projection: projection.layers,
    "ranks": lambda projection: projection.ranks,
    "skipped": lambda projection: projection.skipped,
    "state_dict": lambda projection: projection.state_dict(),
}
CALLS = {
    "step": lambda projection: projection.step(),
    "compact": lambda projection: projection.compact(),
    "compact_ranks": lambda projection: projection.compact_ranks,
    "report": lambda projection: projection.report((3, 9, 9)),
}


def replace_norm(model):
    model.last_norm = nn.GroupNorm(4, 20)


def shrink_norm(model):
    model.last_norm = nn.BatchNorm2d(19)


def forget_statistics(model):
    model.last_norm = nn.BatchNorm2d(20, track_running_stats=False)


def transpose(model):
    model.bare.weight.data = model.bare.weight.data.flatten(1)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: prune.random_unstructured(m.bare, "weight", 0.5),
            "bare has changed.*computed from other parameters",
        ),
        (lambda m: parametrizations.weight_norm(m.bare), "bare has changed.*computed from other parameters"),
        (lambda m: delattr(m, "bare"), "bare has changed.*it is gone"),
        (lambda m: setattr(m, "bare", nn.Identity()), "bare has changed.*it is a Identity now"),
        (lambda m: setattr(m, "bare", nn.Conv2d(16, 16, 3, groups=2)), "bare has changed.*2 groups"),
        (
            lambda m: setattr(m, "bare", nn.Conv2d(16, 16, 5)),
            r"bare has changed.*shape \(16, 16, 5, 5\), had \(16, 16,",
        ),
        (lambda m: setattr(m.right, "weight", nn.Parameter(m.right.weight[:8])), r"right.weight has shape \(8, 12,"),
        (lambda m: setattr(m, "new", nn.Conv2d(4, 4, 3)), "new has changed.*can be projected now.*it was not there"),
        (transpose, r"bare.weight has shape \(16, 144\), but its Conv2d says \[16, 16, \*, \*\]"),
        (replace_norm, "last_norm has changed.*behind last there was a BatchNorm, not GroupNorm"),
        (shrink_norm, "last_norm has changed.*no running variance of the 20 outputs of last"),
        (forget_statistics, "last_norm has changed.*no running variance of the 20 outputs of last"),
    ],
)
def test_what_cannot_be_followed_is_refused(call, change, message):
    model = networks.branches()
    projection = LowRankProjection(model)
    change(model)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        CALLS[call](projection)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda m: m.to("meta"), TypeError, "stem.weight is a meta tensor, without values"),
        (
            lambda m: setattr(m.bare.weight, "data", m.bare.weight[:1, :1].expand(16, 16, 3, 3)),
            ValueError,
            "bare.weight ov",
        ),
        (lambda m: m.bare.weight.untyped_storage().resize_(0), ValueError, "storage of bare.weight was freed"),
    ],
)
def test_weights_without_values_are_named(call, change, error, message):
    model = networks.branches()
    projection = LowRankProjection(model)
    with torch.no_grad():
        change(model)
    with pytest.raises(error, match=message):
        CALLS[call](projection)


def test_a_model_that_cannot_be_copied():
    model = networks.branches()
    model.head.lock = threading.Lock()
    with pytest.warns(UserWarning, match="could not be traced"):
        projection = LowRankProjection(model)
    projection.step()
    for call in ("compact", "report"):
        with pytest.raises(TypeError, match=r"the model cannot be copied: head.lock cannot \(cannot pickle"):
            CALLS[call](projection)


def test_a_layer_that_was_thawed_is_refused():
    model = networks.branches()
    model.bare.requires_grad_(False)
    projection = LowRankProjection(model)
    model.requires_grad_(True)
    with pytest.raises(ValueError, match=r"bare has changed.*can be projected now; before: frozen"):
        projection.step()


def test_modules_replaced_by_their_like_are_followed():
    model = networks.branches()
    projection = LowRankProjection(model, prune_ratio=0.6)
    projection.step()
    old = model.last.weight.detach().clone()
    replaced = model.last
    model.last = nn.Conv2d(14, 20, 3)
    model.last_norm = networks.randomize_norms(nn.SyncBatchNorm(20), seed=3)
    before = model.last.weight.detach().clone()
    projection.step()
    assert torch.equal(replaced.weight, old)
    expect_weight(model.last.weight, project(before, 8, scale_of(model.last_norm)), 1e-4)
    assert projection.compact().last[1].weight.shape == (20, 8, 1, 1)


def test_a_square_weight_transposed_in_place_is_projected_as_it_is():
    layer = nn.Linear(12, 12)
    projection = LowRankProjection(layer, ranks={"": 4}, linear=True)
    projection.step()
    layer.weight.data = torch.randn(12, 12).t()
    before = layer.weight.detach().clone()
    projection.step()
    expect_weight(layer.weight, project(before, 4))
    assert layer.weight.stride() == (1, 12)


def test_what_is_frozen_later_is_left_alone_until_it_is_thawed():
    model = networks.branches()
    projection = LowRankProjection(model, prune_ratio=0.6)
    projection.step()
    model.bare.weight.requires_grad_(False).normal_()
    before = model.bare.weight.clone()
    report = projection.step()
    assert torch.equal(model.bare.weight, before)
    assert report.skipped["bare"] == projection.skipped["bare"] == "frozen (requires_grad is False)"
    assert "bare" not in report.ranks
    # What is frozen can be made compact: a network that is trained to the end is.
    assert projection.compact_ranks["bare"] == projection.ranks["bare"]
    model.bare.requires_grad_(True)
    assert "bare" not in projection.step().skipped
    assert rank_of(model.bare.weight) == projection.ranks["bare"]


def pickled(pair):
    return pickle.loads(pickle.dumps(pair))


def saved(pair):
    file = io.BytesIO()
    torch.save(pair, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved])
@pytest.mark.parametrize("wrap", [lambda m: m, nn.DataParallel])
@pytest.mark.parametrize("order", [1, -1])
def test_a_copy_works_on_the_copied_model(copied, wrap, order):
    model = wrap(networks.branches())
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 3, 9, 9)).sum().backward()
    optimizer.step()
    projection = LowRankProjection(model, optimizer=optimizer, optimizer_state="reset")
    projection.step()
    parts = copied([model, optimizer, projection][::order])
    other, its_optimizer, its_projection = parts[::order]
    for tensor in (model, other):
        with torch.no_grad():
            for parameter in tensor.parameters():
                parameter += 0.01
    before = copy.deepcopy(model.state_dict())
    its_projection.step()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    projection.step()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    bare = next(module for name, module in other.named_modules() if name.endswith("bare"))
    assert rank_of(bare.weight) == projection.ranks["bare"]
    assert not its_optimizer.state[bare.weight]["exp_avg"].any()


def test_a_weight_that_is_computed_now_is_not_computed_to_be_refused():
    model = networks.branches()
    model.bare.weight.data.mul_(1e20)
    projection = LowRankProjection(model)
    report = projection.step()
    state = projection.state_dict()
    parametrizations.spectral_norm(model.bare)  # whose vectors move each time the weight is computed
    before = copy.deepcopy(model.state_dict())
    for read in READS.values():
        read(projection)
    report.table()
    for call in (*CALLS.values(), lambda projection: projection.load_state_dict(state)):
        with pytest.raises(ValueError, match=r"bare has changed since .*its weight is computed"):
            call(projection)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
