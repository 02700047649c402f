import copy
import io

import pytest
import torch
from torch import nn

import we_kernels as wk
from tests.grafting.grafting_networks import (
    PAIRED,
    SECTIONS,
    assert_close,
    assert_equal,
    clone,
    entropy,
    grafted,
    grafted_by_filter,
    small,
)
from weight_evolution import FilterGrafting, NonFiniteWeightError, count_invalid_filters


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("count", [2, 3])
def test_level_layer(backend, count):
    models = [small(seed) for seed in range(count)]
    before = [clone(model) for model in models]

    report = FilterGrafting(models).step()

    for model, expected in zip(models, grafted(before), strict=True):
        assert_close(model, expected)
    for i, state in enumerate(before):
        assert report.entropies[i] == pytest.approx({f"{c}.weight": entropy(state[f"{c}.weight"]) for c in SECTIONS})
        counts = {name: report.coefficients[i][name] for name in state if state[name].is_floating_point()}
        assert counts == report.coefficients[i]
        for owners in SECTIONS.values():
            kept = {report.coefficients[i][name] for name in counts if name.split(".")[0] in owners}
            assert len(kept) == 1
        assert len(set(report.coefficients[i].values())) > 1
        assert models[i].input_norm.num_batches_tracked == i + 7


def test_level_filter(backend):
    models = [small(seed) for seed in range(3)]
    before = [clone(model) for model in models]

    report = FilterGrafting(models, level="filter").step()

    for model, expected in zip(models, grafted_by_filter(before), strict=True):
        assert_close(model, expected)
    assert set(report.whole_layer) == {"bare.weight"}
    assert "not by a BatchNorm" in report.whole_layer["bare.weight"]
    for conv, norm in PAIRED.items():
        shares = report.coefficients[1][f"{conv}.weight"]
        own, other = before[1][f"{norm}.weight"].abs(), before[0][f"{norm}.weight"].abs()
        torch.testing.assert_close(shares, own / (own + other))
        assert torch.equal(shares, report.coefficients[1][f"{norm}.running_var"])
    assert isinstance(report.coefficients[1]["bare.weight"], float)
    assert "bare.weight: one coefficient for all filters: followed by relu" in report.table()


def test_two_scales_of_zero_are_averaged():
    models = [small(0), small(1)]
    for model in models:
        nn.init.zeros_(model.norm1.weight)
    report = FilterGrafting(models, level="filter").step()
    assert torch.equal(report.coefficients[0]["conv1.weight"], torch.full((6,), 0.5))


def test_a_model_that_cannot_be_traced_falls_back_or_takes_names():
    class Untraceable(nn.Sequential):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    def make():
        return Untraceable(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))

    report = FilterGrafting([make(), make()], level="filter").step()
    assert "the model could not be traced" in report.whole_layer["0.weight"]
    named = FilterGrafting([make(), make()], level="filter", batch_norm_pairs={"0": "1"}).step()
    assert not named.whole_layer


def test_strength_zero_is_the_plain_average():
    models = [small(0), small(1)]
    before = [clone(model) for model in models]
    report = FilterGrafting(models, strength=0.0).step()
    assert {value for one in report.coefficients for value in one.values()} == {0.5}
    for name, tensor in models[0].state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, (before[0][name] + before[1][name]) / 2)


@pytest.mark.parametrize("criterion", ["l1", "filter-entropy"])
def test_other_criteria(criterion):
    def filter_entropy(weight):
        # The transposed convolution's filters are its second dimension.
        filters = weight.transpose(0, 1) if weight.shape == (8, 5, 2, 2) else weight
        return sum(map(entropy, filters)) / len(filters)

    information = {"l1": lambda weight: float(weight.abs().double().sum()), "filter-entropy": filter_entropy}[criterion]
    models = [small(0), small(1)]
    before = [clone(model) for model in models]
    report = FilterGrafting(models, criterion=criterion, sharpness=3.0, strength=0.9).step()
    for model, expected in zip(models, grafted(before, information, 0.9, 3.0), strict=True):
        assert_close(model, expected)
    assert report.entropies[1]["up.weight"] == pytest.approx(information(before[1]["up.weight"]), rel=1e-6)


def test_rounding_is_to_two_decimals():
    models = [small(0), small(1)]
    plain = FilterGrafting(copy.deepcopy(models), sharpness=2.0).step()
    rounded = FilterGrafting(models, sharpness=2.0, round_coefficient=True).step()
    for name, value in plain.coefficients[0].items():
        assert rounded.coefficients[0][name] == pytest.approx(round(value, 2), rel=1e-6)
        assert value != rounded.coefficients[0][name]


def test_networks_on_other_devices_are_copied_first(monkeypatch):
    """The way of several devices, on one."""
    models = [small(seed) for seed in range(3)]
    ring = copy.deepcopy(models)
    FilterGrafting(ring).step()
    grafting = FilterGrafting(models)
    monkeypatch.setattr(wk, "blend_ring_", lambda banks, vectors, per: grafting._blend_over_devices(banks, vectors))
    grafting.step()
    for model, expected in zip(models, ring, strict=True):
        assert_equal(model, expected.state_dict())


def test_two_networks_are_equal_afterwards():
    """Their coefficients add up to one, so what one keeps is what the other takes; three stay apart."""
    for count in (2, 3):
        models = [small(seed) for seed in range(count)]
        FilterGrafting(models).step()
        gap = (models[0].conv1.weight - models[1].conv1.weight).abs().max()
        assert (gap < 1e-6) == (count == 2)


def test_half_precision_and_memory_formats():
    models = [small(seed).bfloat16() for seed in range(2)]
    models[1] = models[1].to(memory_format=torch.channels_last)
    plain = copy.deepcopy(models)
    plain[1] = plain[1].to(memory_format=torch.contiguous_format)
    for pair in (models, plain):
        FilterGrafting(pair).step()
    for one, other in zip(models, plain, strict=True):
        assert_equal(one, other.state_dict())
    assert models[1].conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_shared_weights_are_blended_once():
    def make(seed):
        model = small(seed)
        model.again = nn.Conv2d(3, 6, 3)
        model.again.weight = model.conv1.weight
        return model

    models = [make(0), make(1)]
    before = [clone(model) for model in models]
    grafting = FilterGrafting(models)
    report = grafting.step()
    w = report.coefficients[0]["conv1.weight"]
    expected = w * before[0]["conv1.weight"] + (1 - w) * before[1]["conv1.weight"]
    torch.testing.assert_close(models[0].again.weight.detach(), expected)
    assert grafting.skipped["again.weight"] == "shared with conv1.weight"
    # What follows the second use has the coefficient of the shared weight.
    assert report.coefficients[0]["again.bias"] == w != report.coefficients[0]["fc.bias"]
    assert report.filters == 6 + 8 + 8 + 5


def test_frozen_parts_stay():
    def make(seed):
        model = small(seed)
        model.bare.requires_grad_(False)
        model.norm2.requires_grad_(False)
        return model

    models = [make(0), make(1)]
    before = [clone(model) for model in models]
    grafting = FilterGrafting(models)
    report = grafting.step()
    for name in ("bare.weight", "bare.bias", "norm2.weight", "norm2.running_mean"):
        assert torch.equal(models[0].state_dict()[name], before[0][name])
        assert "frozen" in grafting.skipped[name]
    assert "table" in grafting.skipped
    assert report.coefficients[0]["depthwise.weight"] != 1.0
    assert "frozen" in report.table()


def test_models_may_move_and_be_reloaded_between_steps():
    models = [small(seed) for seed in range(3)]
    grafting = FilterGrafting(models)
    grafting.step()
    for seed, model in enumerate(models):
        model.double()
        model.bare.weight = nn.Parameter(small(seed + 3).double().bare.weight.detach())
    before = [clone(model) for model in models]
    report = grafting.step()
    assert report.step == 1
    for i, model in enumerate(models):
        for name in ("conv1.weight", "bare.weight"):
            w = report.coefficients[i][name]
            expected = w * before[i][name] + (1 - w) * before[i - 1][name]
            torch.testing.assert_close(model.state_dict()[name], expected, rtol=0, atol=1e-7)
    models[1].half()
    with pytest.raises(ValueError, match=r"models\[1\] differs from models\[0\]: scale is torch.float16"):
        grafting.step()


def test_the_report_counts_invalid_filters():
    models = [small(0), small(1)]
    with torch.no_grad():
        models[0].conv1.weight[:2] = 0.0004  # norm 0.0108 each
        models[0].conv1.weight[3] = 0.0
    report = FilterGrafting(models).step()
    assert report.invalid_before == [{0.1: 3, 0.01: 1}, {0.1: 0, 0.01: 0}]
    after = [{t: count_invalid_filters(model, t)[0] for t in (0.1, 0.01)} for model in models]
    assert report.invalid_after == after
    assert report.invalid_after[0][0.1] < 3
    lines = report.table().splitlines()
    assert lines[0] == "filter grafting, step 0, level 'layer', criterion 'entropy'"
    assert lines[1].split("  ")[0] == "network"
    assert lines[2].split() == ["0", "1", "3", "->", "0", "1", "->", "0", "27"]
    row = next(line.split() for line in lines if line.startswith("bare.weight"))
    assert row[1] == f"{report.entropies[0]['bare.weight']:.4f}"
    assert row[4] == f"{report.coefficients[1]['bare.weight']:.3f}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda m: setattr(m, "bare", nn.Conv2d(6, 8, 3)),
            "bare.weight is torch.float32 of shape (8, 6, 3, 3), not torch.float32 of shape (8, 6, 1, 1)",
        ),
        (lambda m: m.norm3.double(), "norm3.weight is torch.float64 of shape (5,), not torch.float32"),
        (lambda m: setattr(m, "more", nn.Linear(2, 2)), "only it has more.weight"),
        (lambda m: delattr(m, "fc"), "it has no fc.weight"),
        (lambda m: m.fc.bias.requires_grad_(False), "fc.bias is not grafted (frozen (requires_grad is False)), not"),
        (lambda m: m.add_module("bare", m._modules.pop("bare")), "depthwise.weight comes where the other has bare"),
    ],
    ids=["shape", "dtype", "more", "less", "frozen", "order"],
)
def test_other_structures_are_refused(change, message):
    models = [small(0), small(1)]
    change(models[1])
    before = [clone(model) for model in models]
    with pytest.raises(ValueError) as error:
        FilterGrafting(models)
    assert str(error.value).startswith("models[1] differs from models[0]: ")
    assert message in str(error.value)
    for model, state in zip(models, before, strict=True):
        assert_equal(model, state)


@pytest.mark.parametrize("name", ["bare.weight", "fc.bias", "norm3.running_var", "scale"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(name, value):
    models = [small(0), small(1), small(2)]
    with torch.no_grad():
        models[1].state_dict()[name].view(-1)[-1] = value
    before = [clone(model) for model in models]
    grafting = FilterGrafting(models)
    with pytest.raises(NonFiniteWeightError, match=f"network 1: {name} is NaN or infinite; nothing was changed"):
        grafting.step()
    for model, state in zip(models, before, strict=True):
        for key, tensor in model.state_dict().items():
            torch.testing.assert_close(tensor, state[key], rtol=0, atol=0, equal_nan=True)


def test_what_is_frozen_and_measured_must_be_finite():
    models = [small(0), small(1)]
    for model in models:
        model.bare.requires_grad_(False)
    with torch.no_grad():
        models[0].bare.weight[0, 0] = torch.inf
    before = clone(models[1])
    with pytest.raises(NonFiniteWeightError, match=r"network 0: bare.weight is NaN or infinite; nothing was changed"):
        FilterGrafting(models).step()
    assert_equal(models[1], before)


def test_frozen_convolutions_must_be_alike():
    models = [small(0), small(1)]
    models[1].bare = nn.Conv2d(6, 8, 3)
    for model in models:
        model.bare.requires_grad_(False)
    with pytest.raises(
        ValueError, match=r"bare.weight is not grafted .*measured: torch.float32 of shape \(8, 6, 3, 3\)"
    ):
        FilterGrafting(models)


def test_networks_that_share_tensors_are_refused():
    first, second = small(0), small(1)
    second.fc.weight = first.fc.weight
    with pytest.raises(ValueError, match=r"models\[1\].fc.weight shares memory with models\[0\].fc.weight"):
        FilterGrafting([first, second])
    with pytest.raises(ValueError, match="shares memory"):
        FilterGrafting([first, first])


def test_slices_of_one_storage_that_do_not_overlap():
    """As in a stack of networks (experiments/stacked.py)."""
    models, twins = [small(0), small(1)], [small(0), small(1)]
    for parameters in zip(*(model.parameters() for model in models), strict=True):
        stacked = torch.stack([parameter.detach() for parameter in parameters])
        for parameter, part in zip(parameters, stacked, strict=True):
            parameter.data = part
    FilterGrafting(models).step()
    FilterGrafting(twins).step()
    for model, twin in zip(models, twins, strict=True):
        assert all(map(torch.equal, model.state_dict().values(), twin.state_dict().values()))


def test_models_that_cannot_be_grafted():
    parametrized = small(0)
    nn.utils.parametrizations.weight_norm(parametrized.bare)
    with pytest.raises(TypeError, match=r"bare.weight is computed from other tensors"):
        FilterGrafting([parametrized, small(1)])
    with pytest.raises(ValueError, match="no convolution whose information"):
        FilterGrafting([nn.Linear(2, 3), nn.Linear(2, 3)])
    with pytest.raises(ValueError, match="all are frozen"):
        FilterGrafting([nn.Conv2d(2, 3, 1).requires_grad_(False), nn.Conv2d(2, 3, 1).requires_grad_(False)])
    with pytest.raises(TypeError, match="not initialized yet"):
        FilterGrafting([nn.LazyConv2d(2, 3), nn.LazyConv2d(2, 3)])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"strength": 1.5}, ValueError, "strength must be in [0, 1], got 1.5"),
        ({"strength": True}, TypeError, "strength must be a number, got bool"),
        ({"sharpness": -1.0}, ValueError, "sharpness must be a finite number from 0"),
        ({"sharpness": float("inf")}, ValueError, "sharpness"),
        ({"level": "kernel"}, ValueError, 'level must be "layer" or "filter", got'),
        ({"criterion": "l2"}, ValueError, 'criterion must be "entropy", "filter-entropy" or "l1", got'),
        ({"bins": 0}, ValueError, "bins must be an integer from 1"),
        ({"bins": 2.5}, TypeError, "bins must be an integer, got float"),
        ({"bins": 1000}, ValueError, "bins must be at most"),
        ({"round_coefficient": 2}, TypeError, "round_coefficient must be True or False"),
        ({"ranks_per_network": 2}, ValueError, "is for one model per rank"),
        ({"example_inputs": [1]}, TypeError, "example_inputs must be a tensor or a tuple"),
        ({"level": "filter", "batch_norm_pairs": {"nowhere": None}}, ValueError, "'nowhere' is not a layer"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error) as raised:
        FilterGrafting([small(0), small(1)], **options)
    assert message in str(raised.value)


def test_steps_are_counted_and_go_on_where_a_state_was_taken():
    first = FilterGrafting([small(0), small(1)], level="filter")
    first.step()
    first.step()
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = FilterGrafting([small(0), small(1)], level="filter")
    second.load_state_dict(torch.load(file, weights_only=True))
    assert (first.steps, second.steps) == (2, 2)
    assert second.step().step == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "state has format 2, this version reads 1"),
        ({"steps": -1}, r"state\['steps'\] must be an integer from 0, got -1"),
        ({"steps": 1.5}, r"state\['steps'\] must be an integer, got float"),
        ({"filters": None}, "not a state_dict of FilterGrafting: its 'filters' is a NoneType, not a dict"),
        ({"filters": {}}, "state is of another model: conv1.weight has no filters there and 6 filters here"),
        ({"options": {"strength": 0.5}}, "strength=0.5, this FilterGrafting has 0.4.*strict=False"),
    ],
)
def test_states_that_do_not_fit_are_refused(changes, message):
    grafting = FilterGrafting([small(0), small(1)])
    grafting.step()
    state = grafting.state_dict()
    with pytest.raises(ValueError, match=message):
        grafting.load_state_dict({**state, **changes})
    assert grafting.state_dict() == state
    for broken in (3, {}, {key: value for key, value in state.items() if key != "steps"}):
        with pytest.raises(ValueError, match="state is not a state_dict of FilterGrafting: it "):
            grafting.load_state_dict(broken)


def test_a_state_of_other_options_is_taken_if_asked_for():
    state = FilterGrafting([small(0), small(1)], strength=0.1).state_dict()
    grafting = FilterGrafting([small(0), small(1)])
    grafting.load_state_dict({**state, "steps": 5}, strict=False)
    assert (grafting.steps, grafting.strength) == (5, 0.4)


def test_options_can_be_read_and_not_set():
    grafting = FilterGrafting([small(0), small(1)], level="filter", bins=7)
    options = {"strength": 0.4, "sharpness": 500.0, "level": "filter", "criterion": "entropy", "bins": 7}
    for name, value in (options | {"round_coefficient": False}).items():
        assert getattr(grafting, name) == value
        with pytest.raises(AttributeError):
            setattr(grafting, name, value)


def test_bad_models():
    with pytest.raises(ValueError, match="at least 2 networks, got 1"):
        FilterGrafting([small(0)])
    with pytest.raises(TypeError, match="must be a list of networks"):
        FilterGrafting(3)
    with pytest.raises(TypeError, match=r"each model must be a torch.nn.Module, got int"):
        FilterGrafting([small(0), 3])
    with pytest.raises(ValueError, match="init_process_group first"):
        FilterGrafting(small(0))


def test_wrapped_models_are_seen_through():
    models = [small(0), small(1)]
    plain = copy.deepcopy(models)
    FilterGrafting(plain).step()
    FilterGrafting([nn.DataParallel(models[0]), torch.compile(models[1], backend="eager")]).step()
    for model, expected in zip(models, plain, strict=True):
        assert_equal(model, expected.state_dict())
