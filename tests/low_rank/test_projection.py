"""`LowRankProjection.step`: what it changes, skips, reports and remembers."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import we_kernels as wk
from tests.low_rank import networks
from tests.low_rank.svd_oracle import project, rank_of, scale_of
from weight_evolution import LowRankProjection
from weight_evolution.training.models import make_model


def expect_weight(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual.detach().double(), expected, rtol=0, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize("rectify", [True, False])
@pytest.mark.parametrize("energy_transfer", [True, False])
def test_step_projects_each_layer_with_its_own_norm(rectify, energy_transfer):
    model = networks.branches()
    before = copy.deepcopy(model)
    projection = LowRankProjection(model, prune_ratio=0.6, rectify_batch_norm=rectify, energy_transfer=energy_transfer)

    projection.step()

    changed = {f"{name}.weight" for name in networks.PAIRS}
    for name, tensor in model.state_dict().items():
        if name not in changed:
            assert torch.equal(tensor, before.state_dict()[name]), name
    for name, norm in networks.PAIRS.items():
        scale = scale_of(before.get_submodule(norm)) if rectify and norm else None
        original, weight = before.get_submodule(name).weight, model.get_submodule(name).weight
        expect_weight(weight, project(original, projection.ranks[name], scale, energy_transfer))
        assert rank_of(weight) == projection.ranks[name]


def test_linear_layers_take_part_when_asked():
    model = networks.branches()
    head = model.head.weight.detach().clone()
    LowRankProjection(model).step()
    assert torch.equal(model.head.weight, head)
    projection = LowRankProjection(model, linear=True, prune_ratio=0.5)
    projection.step()
    expect_weight(model.head.weight, project(head, 5))
    assert projection.ranks["head"] == 5


@pytest.mark.parametrize(
    ("conv", "norm"),
    [(nn.Conv1d(5, 12, 3), nn.BatchNorm1d(12)), (nn.Conv3d(3, 10, (3, 1, 2)), nn.BatchNorm3d(10))],
)
def test_other_dimensions(conv, norm):
    model = networks.randomize_norms(nn.Sequential(conv, norm))
    before = conv.weight.detach().clone()
    projection = LowRankProjection(model, prune_ratio=0.7)
    projection.step()
    expect_weight(conv.weight, project(before, projection.ranks["0"], scale_of(norm)))


def test_norm_without_scale_and_shift():
    model = networks.randomize_norms(nn.Sequential(nn.Conv2d(4, 12, 3), nn.BatchNorm2d(12, affine=False)))
    before = model[0].weight.detach().clone()
    LowRankProjection(model, ranks={"0": 3}).step()
    expect_weight(model[0].weight, project(before, 3, scale_of(model[1])))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3), (torch.float64, 1e-9)])
def test_other_dtypes(dtype, tolerance):
    model = networks.branches().to(dtype)
    before = model.last.weight.detach().clone()
    LowRankProjection(model, prune_ratio=0.6).step()
    assert model.last.weight.dtype == dtype
    expect_weight(model.last.weight, project(before, 8, scale_of(model.last_norm)), tolerance)


def test_channels_last_weights_give_the_same_and_stay_so():
    plain, model = networks.branches(), networks.branches().to(memory_format=torch.channels_last)
    LowRankProjection(plain).step()
    LowRankProjection(model).step()
    assert model.left.weight.is_contiguous(memory_format=torch.channels_last)
    for name in networks.PAIRS:
        expect_weight(model.get_submodule(name).weight, plain.get_submodule(name).weight.detach().double())


def test_second_step_follows_the_statistics_and_moved_weights():
    model = networks.branches()
    projection = LowRankProjection(model, prune_ratio=0.6)
    projection.step()
    with torch.no_grad():
        model.last.weight += 0.02 * torch.randn_like(model.last.weight)
        model.last_norm.running_var *= torch.rand(20) + 0.5
    model.last.weight = nn.Parameter(model.last.weight.detach().clone())
    before = model.last.weight.detach().clone()
    projection.step()
    scale = scale_of(model.last_norm)
    expect_weight(model.last.weight, project(before, 8, scale), 3e-3)
    # A step from the last basis may turn the subspace a little, but keeps its energy to 1e-5.
    energy = (scale[:, None] * before.double().flatten(1)).square().sum()
    back = (scale[:, None] * model.last.weight.detach().double().flatten(1)).square().sum()
    assert float(back / energy) == pytest.approx(1.0, abs=1e-4)
    assert rank_of(model.last.weight) == 8


class OwnForward(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


def unfit_layers():
    shared = nn.Conv2d(4, 4, 3, padding=1)
    other = nn.Conv2d(4, 4, 3, padding=1)
    other.weight = shared.weight
    frozen = nn.Conv2d(4, 4, 3)
    frozen.weight.requires_grad_(False)
    model = nn.ModuleDict(
        {
            "fit": nn.Conv2d(8, 8, 3),
            "grouped": nn.Conv2d(8, 8, 3, groups=2),
            "transposed": nn.ConvTranspose2d(4, 8, 3),
            "parametrized": parametrizations.weight_norm(nn.Conv2d(4, 8, 3)),
            "pruned": prune.random_unstructured(nn.Conv2d(4, 8, 3), "weight", 0.5),
            "shared": shared,
            "other": other,
            "frozen": frozen,
            "own_forward": OwnForward(4, 4, 3),
            "attention": nn.MultiheadAttention(8, 2),
            "excluded": nn.Conv2d(4, 4, 3),
            "tied": nn.Linear(6, 9),
            "embedding": nn.Embedding(9, 6),
        }
    )
    model["embedding"].weight = model["tied"].weight
    return model


def test_layers_that_do_not_fit_are_listed_and_left_alone():
    model = unfit_layers()
    before = copy.deepcopy(model.state_dict())
    projection = LowRankProjection(model, exclude=["excluded"], linear=True)
    assert projection.layers == ["fit"]
    reasons = {
        "grouped": "2 groups",
        "transposed": "transposed",
        "parametrized": "computed from other parameters",
        "pruned": "computed from other parameters",
        "shared": "shares its weight with other",
        "other": "shares its weight with shared",
        "frozen": "requires_grad",
        "own_forward": "OwnForward computes something else than Conv2d",
        "attention.out_proj": "attention reads its weight directly",
        "excluded": "excluded",
        "tied": "shares its weight with embedding",
    }
    assert projection.skipped.keys() == reasons.keys()
    for name, reason in reasons.items():
        assert reason in projection.skipped[name]
    report = projection.step()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) == (name != "fit.weight"), name
    for name, reason in reasons.items():
        assert name in report.table()
        assert reason in report.skipped[name]


def test_include_and_exclude():
    model = networks.branches()
    assert LowRankProjection(model, include=["last", "ste*"]).layers == ["stem", "last"]
    assert LowRankProjection(model, include=[nn.Linear], linear=True).layers == ["head"]
    assert LowRankProjection(model, exclude=["last", "ste*"]).layers == ["left", "right", "bare", "twice_used"]


def test_vanishing_layer_is_left_alone_and_reported():
    model = networks.branches()
    model.bare.weight.data *= 1e-5
    model.last_norm.weight.data.zero_()  # the matrix is large, but the BatchNorm makes nothing of it
    bare, last = model.bare.weight.detach().clone(), model.last.weight.detach().clone()
    report = LowRankProjection(model).step()
    assert torch.equal(model.bare.weight, bare)
    assert torch.equal(model.last.weight, last)
    assert {name for name, reason in report.skipped.items() if "under 1e-4" in reason} == {"bare", "last"}
    assert "under 1e-4" in report.table()


def test_report():
    model = networks.branches()
    values = torch.linalg.svdvals(model.bare.weight.detach().double().flatten(1)).square()
    projection = LowRankProjection(model, prune_ratio=0.5)
    report = projection.step()
    assert report.step == 0
    assert report.ranks == projection.ranks
    assert report.batch_norms == networks.PAIRS
    assert report.finite
    assert report.energy_kept.keys() == networks.PAIRS.keys()
    assert report.energy_kept["bare"] == pytest.approx(float(values[:8].sum() / values.sum()), rel=1e-5)
    assert report.skipped == {"depthwise": "20 groups"}
    text = report.table()
    assert "stem_norm" in text
    assert "16 x 144" in text
    assert f"{report.energy_kept['bare']:.4f}" in text
    again = projection.step()
    assert again.step == 1
    assert again.energy_kept["bare"] == pytest.approx(1.0, abs=1e-5)


def test_a_projection_beyond_the_dtype_is_reported():
    model = networks.branches().half()
    signs = torch.randn(model.bare.weight.shape, generator=torch.Generator().manual_seed(3)).sign()
    model.bare.weight.data.copy_(signs * 65000)
    before = model.bare.weight.detach().clone()
    report = LowRankProjection(model).step()
    assert torch.equal(model.bare.weight, before)
    assert report.skipped["bare"] == "its projection is beyond the range of torch.float16"
    assert "beyond the range" in report.table()
    assert set(report.skipped) == {"bare", "depthwise"}


@pytest.mark.parametrize("first", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("then", [torch.inference_mode, torch.enable_grad])
def test_steps_in_inference_mode_and_out_of_it(first, then):
    model, plain = networks.branches(), networks.branches()
    projection, other = LowRankProjection(model), LowRankProjection(plain)
    for mode in (first, then, torch.no_grad):
        with mode():
            projection.step()
            state = projection.state_dict()
        other.step()
        projection.load_state_dict(state)
    assert all(torch.equal(tensor, plain.state_dict()[name]) for name, tensor in model.state_dict().items())
    model(torch.ones(2, 3, 9, 9)).sum().backward()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_weight_changes_nothing_and_is_named(value):
    model = networks.branches()
    model.bare.weight.data[1, 2, 0, 1] = value
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(wk.NonFiniteWeightError, match=r"^bare\.weight: not finite"):
        LowRankProjection(model).step()
    report = LowRankProjection(model, check_finite=False).step()
    assert not report.finite
    assert set(networks.PAIRS) <= set(report.skipped)
    assert "not finite" in report.table()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)


def test_non_finite_batch_norm_changes_nothing_and_is_named():
    model = networks.branches()
    model.last_norm.running_var[3] = -1.0
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(wk.NonFiniteWeightError, match=r"^last_norm \(behind last\): not finite"):
        LowRankProjection(model).step()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_mobilenet_and_resnet():
    x = torch.randn(2, 3, 16, 16)
    for name, depthwise in (("mobilenetv2", True), ("resnet8", False)):
        torch.manual_seed(0)
        model = networks.randomize_norms(make_model(name, 3, 10))
        grouped = {name for name, module in model.named_modules() if getattr(module, "groups", 1) > 1}
        assert bool(grouped) == depthwise
        projection = LowRankProjection(model, prune_ratio=0.6)
        report = projection.step()
        assert {name for name, reason in report.skipped.items() if "groups" in reason} == grouped
        assert None not in report.batch_norms.values()
        with torch.no_grad():
            expected, actual = model.eval()(x), projection.compact().eval()(x)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def train(model, optimizer, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 9, 9, generator=generator)).square().mean().backward()
        optimizer.step()


def test_optimizer_state_is_kept_or_reset():
    for choice in ("keep", "reset"):
        model = networks.branches()
        optimizer = torch.optim.Adam(model.parameters())
        train(model, optimizer, 2, 0)
        LowRankProjection(model, optimizer=optimizer, optimizer_state=choice).step()
        moment = optimizer.state[model.last.weight]["exp_avg"]
        assert bool((moment == 0).all()) == (choice == "reset")
        assert optimizer.state[model.stem_norm.weight]["exp_avg"].abs().sum() > 0


def test_resumed_training_is_bit_equal():
    def run(interrupted):
        model = networks.branches()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        projection = LowRankProjection(model, budget=0.5, input_size=(3, 9, 9))
        for epoch in range(4):
            if interrupted and epoch == 2:
                file = io.BytesIO()
                torch.save([model.state_dict(), optimizer.state_dict(), projection.state_dict()], file)
                file.seek(0)
                states = torch.load(file, weights_only=True)
                model = networks.branches(seed=5)
                optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
                projection = LowRankProjection(model, budget=0.3, input_size=(3, 9, 9))
                for part, state in zip((model, optimizer, projection), states, strict=True):
                    part.load_state_dict(state)
            train(model, optimizer, 2, epoch)
            report = projection.step()
        return model.state_dict(), projection.ranks, report.step

    (straight, ranks, step), (resumed, resumed_ranks, resumed_step) = run(False), run(True)
    assert resumed_ranks == ranks
    assert resumed_step == step == 3
    for name, tensor in straight.items():
        assert torch.equal(tensor, resumed[name]), name


def changed(**values):
    return lambda state: state.update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("ranks"), "not a state_dict of LowRankProjection"),
        (changed(shapes=3), "not a state_dict of LowRankProjection"),
        (changed(format=99), "format 99"),
        (changed(steps=-1), r"state\['steps'\]"),
        (lambda state: state["ranks"].update(last=2.5), r"state\['ranks'\]\['last'\] must be an integer"),
        (lambda state: state["shapes"].update(stem=[12, 3, 5, 5]), r"another model: stem has shape \[12, 3, 5, 5\]"),
        (lambda state: state["shapes"].pop("last"), "another model: last has no shape there"),
        (lambda state: state["shapes"].update(more=[1, 1]), "another model: more has shape"),
        (lambda state: state["ranks"].pop("last"), r"state\['ranks'\] must have"),
        (lambda state: state["ranks"].update(last=0), r"ranks\['last'\] must be an integer from 1"),
        (changed(bases=[torch.ones(3)]), "its 'bases' is a list, not a dict"),
        (changed(bases={"first": torch.ones(3, 2)}), r"state\['bases'\] is not"),
    ],
)
def test_state_of_another_model_is_refused_and_changes_nothing(change, message):
    projection = LowRankProjection(networks.branches(), prune_ratio=0.6)
    projection.step()
    own = copy.deepcopy(projection.state_dict())
    state = LowRankProjection(networks.branches(), prune_ratio=0.4).state_dict()
    change(state)
    with pytest.raises(ValueError, match=message):
        projection.load_state_dict(state)
    after = projection.state_dict()
    assert (after["steps"], after["ranks"], after["shapes"]) == (own["steps"], own["ranks"], own["shapes"])
    assert all(torch.equal(basis, own["bases"][position]) for position, basis in after["bases"].items())


def test_options_can_be_read_and_not_set():
    projection = LowRankProjection(networks.branches(), energy_transfer=False)
    projection.step()
    options = {"energy_transfer": False, "check_finite": True, "steps": 1}
    for name, value in options.items():
        assert getattr(projection, name) == value
        with pytest.raises(AttributeError):
            setattr(projection, name, value)
    for name in ("linear", "rectify_batch_norm", "energy_transfer", "check_finite"):
        with pytest.raises(TypeError, match=f"{name} must be True or False, got 1"):
            LowRankProjection(networks.branches(), **{name: 1})


def test_state_does_not_change_with_later_steps():
    model = networks.branches()
    projection = LowRankProjection(model)
    projection.step()
    state = projection.state_dict()
    before = copy.deepcopy(state)
    model.last.weight.data.normal_()
    projection.step()
    assert state["steps"] == before["steps"]
    assert state["bases"]
    assert all(torch.equal(basis, before["bases"][position]) for position, basis in state["bases"].items())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LowRankProjection([1]), TypeError, "model must be a torch.nn.Module"),
        (lambda: LowRankProjection(nn.Linear(3, 4)), ValueError, "no layer to project.*linear=True"),
        (lambda: LowRankProjection(nn.Conv2d(4, 4, 3, groups=2)), ValueError, "no layer to project.*2 groups"),
        (lambda: LowRankProjection(nn.LazyConv2d(4, 3)), TypeError, "not initialized"),
        (lambda: LowRankProjection(networks.branches(), exclude=["x"]), ValueError, "exclude: 'x' matches no module"),
        (lambda: LowRankProjection(networks.branches(), include="x"), TypeError, "include must be a list"),
        (lambda: LowRankProjection(networks.branches(), optimizer_state="clear"), ValueError, "optimizer_state must"),
        (lambda: LowRankProjection(networks.branches(), optimizer_state="reset"), ValueError, "needs optimizer="),
        (lambda: LowRankProjection(networks.branches(), example_inputs=[1]), TypeError, "example_inputs must be"),
        (lambda: LowRankProjection(networks.branches()).report(), ValueError, "needs input_size"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_nothing_to_project_is_a_step_without_effect():
    model = networks.branches()
    before = copy.deepcopy(model.state_dict())
    projection = LowRankProjection(model, prune_ratio=0.0)
    report = projection.step()
    assert report.ranks == {}
    assert report.energy_kept == {}
    assert "stem" in report.table()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert projection.compact_ranks == {}
