"""Networks that change under a grafting, copies, and what is left out."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.utils import parametrizations, prune

from tests.grafting.grafting_networks import assert_equal, clone, small
from weight_evolution import FilterGrafting, LowRankProjection


def expect_blend(models, before, report, names):
    for i, model in enumerate(models):
        for name in names:
            w = report.coefficients[i][name]
            shape = [1] * before[i][name].dim()
            if isinstance(w, torch.Tensor):
                shape[0] = -1
                w = w.view(shape)
            expected = w * before[i][name] + (1 - w) * before[i - 1][name]
            torch.testing.assert_close(model.state_dict()[name], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("level", ["layer", "filter"])
def test_replaced_modules_are_followed(level):
    models = [small(0), small(1)]
    grafting = FilterGrafting(models, level=level)
    grafting.step()
    old = [model.conv1 for model in models]
    for seed, model in enumerate(models):
        other = small(seed + 2)
        model.conv1, model.norm1 = other.conv1, other.norm1
    before, left = [clone(model) for model in models], [conv.weight.detach().clone() for conv in old]
    report = grafting.step()
    expect_blend(models, before, report, ["conv1.weight", "norm1.weight", "norm1.running_var", "bare.weight"])
    assert all(torch.equal(conv.weight, weight) for conv, weight in zip(old, left, strict=True))
    assert not torch.equal(models[0].conv1.weight, before[0]["conv1.weight"])


def test_a_batch_norm_that_is_gone_pairs_no_more():
    models = [small(0), small(1)]
    grafting = FilterGrafting(models, level="filter")
    for model in models:
        model.norm1 = nn.GroupNorm(2, 6)
    report = grafting.step()
    assert "not by a BatchNorm" in report.whole_layer["conv1.weight"]
    assert isinstance(report.coefficients[0]["conv1.weight"], float)


def test_a_square_weight_transposed_in_place():
    models = [small(0, width=8), small(1, width=8)]
    grafting = FilterGrafting(models)
    grafting.step()
    for model in models:
        model.bare.weight.data = torch.randn(8, 8, 1, 1).transpose(0, 1)
    before = [clone(model) for model in models]
    expect_blend(models, before, grafting.step(), ["bare.weight", "conv1.weight"])


def test_freezing_and_thawing_is_followed():
    models = [small(0), small(1)]
    models[0].bare.requires_grad_(False)
    models[1].bare.requires_grad_(False)
    grafting = FilterGrafting(models)
    for model in models:
        model.requires_grad_(True)
        model.fc.requires_grad_(False)
    before = [clone(model) for model in models]
    report = grafting.step()
    expect_blend(models, before, report, ["bare.weight"])
    assert not torch.equal(models[0].bare.weight, before[0]["bare.weight"])
    assert torch.equal(models[0].fc.weight, before[0]["fc.weight"])
    assert "frozen" in grafting.skipped["fc.weight"]


def integers():
    return nn.Parameter(torch.ones(8, 6, 1, 1, dtype=torch.int32), requires_grad=False)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda m: prune.random_unstructured(m.bare, "weight", 0.5), TypeError, "bare.weight is computed from other"),
        (lambda m: parametrizations.weight_norm(m.bare), TypeError, "bare.weight is computed from other"),
        (lambda m: setattr(m, "bare", nn.Conv2d(6, 8, 3)), ValueError, r"models\[1\] differs from models\[0\]: bare.w"),
        (lambda m: m.fc.requires_grad_(False), ValueError, r"fc.weight is not grafted \(frozen"),
        (
            lambda m: setattr(m.bare.weight, "data", m.bare.weight.flatten()),
            ValueError,
            r"bare.weight has shape \(48,\)",
        ),
        (lambda m: m.bare.weight.untyped_storage().resize_(0), ValueError, "storage of bare.weight was freed"),
        (lambda m: setattr(m.bare, "weight", None), TypeError, r"bare.weight is None; pass exclude=\['bare'\]"),
        (lambda m: m.bare.register_parameter("weight", integers()), TypeError, "bare.weight is torch.int32.*exclude="),
        (lambda m: setattr(m, "up", nn.Identity()), ValueError, r"models\[1\] differs from models\[0\]: it has no up"),
    ],
)
def test_what_cannot_be_followed_is_refused(change, error, message):
    models = [small(0), small(1)]
    grafting = FilterGrafting(models)
    before = clone(models[0])
    change(models[1])
    with pytest.raises(error, match=message):
        grafting.step()
    assert_equal(models[0], before)


def test_networks_that_share_a_weight_later_are_refused():
    models = [small(0), small(1)]
    grafting = FilterGrafting(models)
    models[1].fc.weight = models[0].fc.weight
    with pytest.raises(ValueError, match=r"models\[1\].fc.weight shares memory with models\[0\].fc.weight"):
        grafting.step()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
@pytest.mark.parametrize("level", ["layer", "filter"])
def test_a_copy_works_on_the_copied_models(copied, level):
    models = [small(0), small(1), small(2)]
    grafting = FilterGrafting(models, level=level)
    grafting.step()
    others, other_grafting = copied((models, grafting))
    before = [clone(model) for model in models]
    assert other_grafting.step().step == 1
    for model, state in zip(models, before, strict=True):
        assert_equal(model, state)
    grafting.step()
    for model, other in zip(models, others, strict=True):
        assert_equal(model, other.state_dict())


def with_constants(seed):
    model = small(seed)
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    model.bare.register_buffer("smallest", torch.tensor(torch.inf))
    model.graph = nn.Module()
    model.graph.register_buffer("edges", torch.eye(3).to_sparse())
    return model


def test_constants_can_be_left_out():
    models = [with_constants(0), with_constants(1)]
    with pytest.raises(
        TypeError, match=r"graph.edges is torch.float32 of layout torch.sparse_coo.*exclude=\['graph.edg"
    ):
        FilterGrafting(models)
    exclude = ["mask", "*.smallest", "graph"]
    before = [clone(model) for model in models]
    grafting = FilterGrafting(models, exclude=exclude)
    report = grafting.step()
    assert {name for name, reason in grafting.skipped.items() if reason == "excluded"} == {
        "mask",
        "bare.smallest",
        "graph.edges",
    }
    expect_blend(models, before, report, ["bare.weight", "conv1.weight"])
    with pytest.raises(Exception, match=r"network 0: mask is NaN or infinite.*left out with exclude="):
        FilterGrafting(models, exclude=exclude[1:]).step()


def test_what_is_not_included_stays_and_is_not_measured():
    def parametrized(seed):
        model = small(seed)
        parametrizations.weight_norm(model.up)
        return model

    models = [parametrized(0), parametrized(1)]
    before = [clone(model) for model in models]
    grafting = FilterGrafting(models, include=["conv1", nn.BatchNorm2d])
    report = grafting.step()
    assert list(report.entropies[0]) == ["conv1.weight"]
    grafted = {name.rpartition(".")[0] for name in report.coefficients[0]}
    assert grafted == {"input_norm", "conv1", "norm1", "norm2", "norm3"}
    assert len(set(report.coefficients[0].values())) == 1
    assert grafting.skipped["up.parametrizations.weight.original0"] == "not included"
    for model, state in zip(models, before, strict=True):
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, state[name]) or name.rpartition(".")[0] in grafted, name


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"exclude": ["nowhere"]}, ValueError, "exclude: 'nowhere' matches no module"),
        ({"include": "conv1"}, TypeError, "include must be a list"),
        ({"include": ["fc"]}, ValueError, "no convolution whose information"),
        ({"exclude": [nn.Conv2d, nn.ConvTranspose2d]}, ValueError, "no convolution whose information.*excluded"),
    ],
)
def test_bad_choices(options, error, message):
    with pytest.raises(error, match=message):
        FilterGrafting([small(0), small(1)], **options)


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    "method", [lambda make: LowRankProjection(make()), lambda make: FilterGrafting([make(), make()])]
)
@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (torch.jit.script, "scripted or traced"),
        (lambda model: torch.export.export(model.eval(), (torch.ones(1, 3, 4, 4),)).module(), "exported"),
    ],
)
def test_forms_without_layers_give_the_real_reason(method, form, reason):
    with pytest.raises(ValueError, match=reason):
        method(lambda: form(nn.Sequential(nn.Conv2d(3, 4, 3))))


@pytest.mark.parametrize("level", ["layer", "filter"])
def test_wrapped_submodules_have_the_names_of_the_model(level):
    plain, models = [small(0), small(1)], [small(0), small(1)]
    models[0].conv1 = checkpoint_wrapper(models[0].conv1)
    models[1].norm1 = torch.compile(models[1].norm1, backend="eager")
    expected = FilterGrafting(plain, level=level, exclude=["fc"]).step()
    report = FilterGrafting([nn.DataParallel(models[0]), models[1]], level=level, exclude=["fc"]).step()
    assert report.coefficients[0].keys() == expected.coefficients[0].keys()
    for model, other in zip(models, plain, strict=True):
        for (name, tensor), right in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
            assert torch.equal(tensor, right), name


@pytest.mark.parametrize("level", ["layer", "filter"])
def test_steps_in_inference_mode_and_out_of_it(level):
    models, plain = [small(0), small(1)], [small(0), small(1)]
    grafting, other = FilterGrafting(models, level=level), FilterGrafting(plain, level=level)
    for mode in (torch.inference_mode, torch.enable_grad, torch.inference_mode):
        with mode():
            grafting.step()
        other.step()
    for model, right in zip(models, plain, strict=True):
        assert_equal(model, right.state_dict())
    models[0](torch.ones(2, 3, 5, 5)).sum().backward()
