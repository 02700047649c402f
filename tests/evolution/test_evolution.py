"""`WeightEvolution`: steps, arguments, state, errors, optimizer state."""

import copy
import io
import math

import pytest
import torch
from torch import nn

import we_kernels as wk
from tests import oracle
from weight_evolution import NonFiniteWeightError, StagedSigmoid, WeightEvolution


def network(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 20, 1), nn.BatchNorm2d(20), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 7),
    )  # fmt: skip
    with torch.no_grad():
        for weight in (model[0].weight, model[3].weight):
            weight.mul_(10.0 ** (-3 * torch.rand(len(weight), 1, 1, 1)))
        for norm in (model[1], model[4]):
            norm.weight.uniform_(0.001, 1)
            norm.bias.normal_()
    return model


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_unchanged(model, before):
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.nan_to_num(5.0), before[name].nan_to_num(5.0)), name


def always(rate, epoch):
    return rate


def norms_of(bank):
    return wk.filter_importance(bank)


@pytest.mark.parametrize("rule", ["paper", "released"])
def test_step_follows_the_specification(rule):
    model = network()
    before = state(model)
    rates = {"conv": 0.6, "norm_scale": 0.3, "norm_shift": 0.4, "linear": 0.5}
    evolution = WeightEvolution(
        model,
        **{f"{kind}_rate": rate for kind, rate in rates.items()},
        schedule=always,
        crossover=rule,
        local_ratio=0.4,
        include=["*"],  # the Linear, too, whose output is the network's
    )
    report = evolution.step()
    groups = {
        "conv": ["0.weight", "3.weight"],
        "norm_scale": ["1.weight", "4.weight"],
        "norm_shift": ["1.bias", "4.bias"],
        "linear": ["8.weight"],
    }
    after = model.state_dict()
    for kind, names in groups.items():
        weights = [before[name] for name in names]
        layers = [report.importance_before[name].tolist() for name in names]
        for layer, expected in zip(layers, oracle.importances(weights, [0] * len(weights)), strict=True):
            assert layer == pytest.approx(expected, rel=1e-6)
        ratio = None if kind == "linear" else 0.4
        donors, thresholds, n_low, counters = oracle.match(layers, [0] * len(layers), [rates[kind]], [ratio], [0], 1.0)
        assert report.thresholds[kind] == thresholds[0]
        assert report.counters[kind] == (0 if kind == "linear" else counters[0])
        assert sum(n_low) > 0
        for name, weight, donor, low in zip(names, weights, donors, n_low, strict=True):
            assert report.donors[name].tolist() == donor
            assert report.donors[name].dtype == torch.int32
            assert report.inferior[name] + report.unmatched[name] == low
            expected = oracle.crossover(weight, 0, donor, rule)
            torch.testing.assert_close(after[name], expected, rtol=3e-5, atol=1e-6)
    # The bias of a Linear follows its rows with the same coefficient; other biases and statistics stay.
    importance, donor = report.importance_before["8.weight"], report.donors["8.weight"]
    for q, p in enumerate(donor.tolist()):
        a = 1.0 if p < 0 else importance[q] / (importance[q] + importance[p])
        expected = a * before["8.bias"][q] + (1 - a) * before["8.bias"][p]
        torch.testing.assert_close(after["8.bias"][q], expected)
    assert int((donor >= 0).sum()) > 0
    for name in before.keys() - {name for names in groups.values() for name in names} - {"8.bias"}:
        assert torch.equal(after[name], before[name]), name


def test_it_counts_epochs_itself_or_is_told():
    seen = []

    def schedule(rate, epoch):
        seen.append(epoch)
        return rate

    evolution = WeightEvolution(network(), schedule=schedule)
    assert [evolution.step().epoch, evolution.step().epoch] == [0, 1]
    assert evolution.step(epoch=70).epoch == 70
    assert evolution.epoch == 71
    assert evolution.preview().epoch == 71
    assert sorted(set(seen)) == [0, 1, 70, 71]


def test_default_schedule_and_rates():
    report = WeightEvolution(network()).step(epoch=60)
    assert report.rates["conv"] == pytest.approx(0.04)
    assert report.rates["norm_scale"] == report.rates["norm_shift"] == pytest.approx(0.01)


def test_preview_changes_nothing_and_tells_what_step_does():
    model = network()
    evolution = WeightEvolution(model, local_ratio=0.0)
    before, counters = state(model), evolution.state_dict()
    preview = evolution.preview()
    assert_unchanged(model, before)
    assert evolution.state_dict() == counters
    report = evolution.step()
    assert {k: v.tolist() for k, v in preview.donors.items()} == {k: v.tolist() for k, v in report.donors.items()}
    assert preview.counters == report.counters
    with pytest.raises(ValueError, match="measure_after=True"):
        _ = preview.importance_after


@pytest.mark.parametrize("name", ["0.weight", "1.weight", "4.bias"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_non_finite_weight(name, value, backend):
    model = network()
    evolution = WeightEvolution(model, local_ratio=0.0, starvation_divisor=0.1)
    evolution.step()
    with torch.no_grad():
        model.get_parameter(name).view(-1)[3] = value
    before, counters = state(model), evolution.state_dict()
    with pytest.raises(NonFiniteWeightError, match=f"^{name}: a weight is NaN or infinite"):
        evolution.step()
    assert_unchanged(model, before)
    assert evolution.state_dict() == counters

    unchecked = WeightEvolution(model, check_finite=False, schedule=always, conv_rate=0.9, local_ratio=1.0)
    report = unchecked.step()
    assert_unchanged(model, before)
    assert not report.finite
    assert sum(report.inferior.values()) == 0
    assert "not finite" in report.table()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"conv_rate": 1.5}, ValueError, r"conv_rate must be in \[0, 1\], got 1.5"),
        ({"norm_scale_rate": -0.1}, ValueError, "norm_scale_rate"),
        ({"norm_shift_rate": math.nan}, ValueError, "norm_shift_rate"),
        ({"linear_rate": "much"}, TypeError, "linear_rate must be a number, got str"),
        ({"norm_shift_rate": "all"}, ValueError, 'norm_shift_rate must be in \\[0, 1\\] or "inferior", got'),
        ({"epochs": 0}, ValueError, "epochs must be an integer from 1, got 0"),
        ({"epochs": 1.5}, TypeError, "epochs must be an integer, got float"),
        ({"local_ratio": 2}, ValueError, "local_ratio"),
        ({"starvation_divisor": 0}, ValueError, "starvation_divisor must be a positive number"),
        ({"starvation_divisor": math.nan}, ValueError, "starvation_divisor"),
        ({"starvation_divisor": "2"}, TypeError, "starvation_divisor must be a number, got str"),
        ({"crossover": 1}, TypeError, 'crossover must be "paper" or "released", got int'),
        ({"importance": "l2"}, ValueError, 'importance must be "l1" or a callable'),
        ({"importance": 1}, TypeError, 'importance must be "l1" or a callable'),
        ({"check_finite": 1}, TypeError, "check_finite must be True or False, got 1"),
        ({"measure_after": None}, TypeError, "measure_after must be True or False, got None"),
        ({"crossover": "figure1"}, ValueError, 'crossover must be "paper" or "released", got \'figure1\''),
        ({"schedule": 0.2}, TypeError, "schedule must be a callable"),
        ({"optimizer_state": "forget"}, ValueError, 'optimizer_state must be "keep", "fill" or "reset"'),
        ({"optimizer_state": "reset"}, ValueError, 'optimizer_state="reset" needs optimizer='),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        WeightEvolution(network(), **options)


@pytest.mark.parametrize(
    ("rate", "error"), [(1.2, ValueError), (-1, ValueError), (math.nan, ValueError), (None, TypeError)]
)
def test_schedule_out_of_range(rate, error):
    model = network()
    evolution = WeightEvolution(model, schedule=lambda base, epoch: rate if epoch == 3 else base)
    before = state(model)
    with pytest.raises(error, match=r"schedule\(conv rate, epoch 3\) must be (in \[0, 1\]|a number)"):
        evolution.step(epoch=3)
    assert_unchanged(model, before)
    assert evolution.epoch == 0


@pytest.mark.parametrize(("epoch", "error"), [(-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_bad_epoch(epoch, error):
    with pytest.raises(error, match="epoch must be an integer"):
        WeightEvolution(network()).step(epoch=epoch)


@pytest.mark.parametrize("rule", ["paper", "released"])
def test_dead_filters_past_the_share_of_the_rate(rule, backend):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8))
    with torch.no_grad():
        model[0].weight[:6] = 0
        model[2].weight[:5] = 0
    shifts = model[1].bias.clone()  # all 0, as most networks begin
    report = WeightEvolution(model, schedule=always, crossover=rule).step()
    assert report.thresholds["conv"] == 0
    if rule == "released":
        assert sum(report.inferior.values()) == 0
        return
    assert report.inferior == {"0.weight": 6, "1.weight": 0, "1.bias": 0, "2.weight": 3, "3.weight": 0, "3.bias": 0}
    assert report.unmatched["2.weight"] == 2
    assert model[0].weight.abs().sum((1, 2, 3)).gt(0).all()
    assert int(model[2].weight.abs().sum((1, 2, 3)).eq(0).sum()) == 2
    assert torch.equal(model[1].bias, shifts)
    row = next(line for line in report.table().splitlines() if line.startswith("2.weight")).split()
    assert row[1:5] == ["8", "3", "0", "2"]


def test_starved_filters_are_told_from_inferior_ones():
    """The only filter below the threshold has 93% of its layer's largest importance."""
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3, bias=False), nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3, affine=False)
    )
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 0.93]).view(2, 1, 1, 1))
        model[1].weight.copy_(torch.tensor([2.0, 3.0, 0.01]).view(3, 1, 1, 1))
    report = WeightEvolution(model, conv_rate=0.5, schedule=always, starvation_divisor=2.0).step()
    assert report.inferior == {"0.weight": 1, "1.weight": 1}
    assert report.starved == {"0.weight": 1, "1.weight": 0}
    assert WeightEvolution(model, starvation_divisor=0.01).step().starved == {"0.weight": 0, "1.weight": 0}


def shifting(model, **options):
    return WeightEvolution(model, conv_rate=0.5, schedule=always, local_ratio=0.5, **options)


def test_shifts_of_inferior_filters_only(backend):
    plain, restricted = network(3), network(3)
    # Small everywhere, so that many are candidates.
    for model in (plain, restricted):
        with torch.no_grad():
            model[1].bias[:5] *= 1e-3
            model[4].bias[:9] *= 1e-3
    usual = shifting(plain, norm_shift_rate=0.05)
    evolution = shifting(restricted, norm_shift_rate="inferior")
    before = restricted[1].bias.clone(), restricted[4].bias.clone()
    preview, expected = evolution.preview(), usual.step()
    report = evolution.step()
    for norm, conv, old in (("1.bias", "0.weight", before[0]), ("4.bias", "3.weight", before[1])):
        wanted = torch.where(report.donors[conv] >= 0, expected.donors[norm], -1)
        assert report.donors[norm].tolist() == preview.donors[norm].tolist() == wanted.tolist()
        assert report.unmatched[norm] == 0
        assert torch.equal(restricted.get_parameter(norm)[wanted < 0], old[wanted < 0])
    for name in ("0.weight", "3.weight", "1.weight", "4.weight"):
        assert torch.equal(restricted.get_parameter(name), plain.get_parameter(name))
        assert report.donors[name].tolist() == expected.donors[name].tolist()


def test_a_shift_moves_with_its_filter():
    model = nn.Sequential(nn.Conv2d(1, 4, 1, bias=False), nn.BatchNorm2d(4))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([4.0, 3.0, 1e-3, 2.0]).view(4, 1, 1, 1))
        model[1].bias.copy_(torch.tensor([1.0, 1e-3, 1e-4, 2.0]))
    # Both of the small shifts are inferior; the filter of one is.
    options = {"schedule": lambda rate, epoch: 0.5, "norm_scale_rate": 0.0}
    report = WeightEvolution(model, norm_shift_rate="inferior", **options).step()
    assert report.donors["1.bias"].tolist() == [-1, -1, 0, -1]
    assert report.inferior["1.bias"] == 1
    model[0].requires_grad_(False)
    assert WeightEvolution(model, norm_shift_rate="inferior", **options).step().donors["1.bias"].tolist() == [-1] * 4


def test_inferior_shifts_need_a_trace():
    class Branching(nn.Sequential):
        def forward(self, x):
            return super().forward(x) if x.sum() > 0 else x

    with pytest.raises(ValueError, match='norm_shift_rate="inferior" needs to know which convolution'):
        WeightEvolution(Branching(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), norm_shift_rate="inferior")


def test_a_second_step_for_an_epoch_warns_once_if_shifts_take_part():
    evolution = WeightEvolution(network())
    evolution.step(epoch=3)
    with pytest.warns(UserWarning, match="a second step for epoch 3"):
        evolution.step(epoch=3)
    evolution.step(epoch=3)
    for rate in (0, "inferior"):
        quiet = WeightEvolution(network(), norm_shift_rate=rate)
        quiet.step(epoch=3)
        quiet.step(epoch=3)


def test_no_step_after_the_last_epoch():
    model = network()
    evolution = WeightEvolution(model, epochs=3, schedule=always)
    assert [evolution.step().epoch for _ in range(2)] == [0, 1]
    before, counters = state(model), evolution.state_dict()["starvation"]
    assert evolution.step() is None
    assert evolution.step(epoch=17) is None
    assert_unchanged(model, before)
    assert evolution.epoch == 18
    assert evolution.state_dict()["starvation"] == counters
    assert evolution.step(epoch=0) is not None
    assert WeightEvolution(network(), schedule=always, epochs=1).step() is None


@pytest.mark.parametrize(("epochs", "first"), [(120, 120), (61, 120), (60, 60), (3, 60), (1, 60)])
def test_stages_beyond_the_run_are_warned_of(epochs, first):
    message = rf"stages from epoch {first} on are never reached in epochs={epochs}; pass .*cifar\(epochs={epochs}\)"
    with pytest.warns(UserWarning, match=message) as warned:
        WeightEvolution(network(), epochs=epochs)
    assert warned[0].filename == __file__


def test_no_warning_of_stages_that_are_reached():
    WeightEvolution(network(), epochs=121)
    WeightEvolution(network())
    for epochs in (1, 2, 3, 4, 90):
        WeightEvolution(network(), schedule=StagedSigmoid.cifar(epochs), epochs=epochs)


def test_numbers_of_numpy():
    np = pytest.importorskip("numpy")
    evolution = WeightEvolution(network(), conv_rate=np.float32(0.25), schedule=always, epochs=np.int64(9))
    assert evolution.step(epoch=np.int32(2)).epoch == 2
    assert evolution.state_dict()["options"]["conv_rate"] == 0.25
    assert isinstance(evolution.state_dict()["options"]["conv_rate"], float)
    assert isinstance(evolution.epoch, int)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conv_rate": 0.1}, "conv_rate=0.2, this WeightEvolution has 0.1"),
        ({"norm_shift_rate": "inferior"}, "norm_shift_rate=0.05, this WeightEvolution has 'inferior'"),
        ({"local_ratio": 0.2}, "local_ratio=0.1, this WeightEvolution has 0.2"),
        ({"starvation_divisor": 3}, r"starvation_divisor=2.0, this WeightEvolution has 3.0"),
        ({"importance": norms_of}, "importance='l1', this WeightEvolution has 'norms_of'"),
        ({"starvation_divisor": None}, "starvation_divisor=2.0, this WeightEvolution has None"),
        ({"crossover": "released"}, "crossover='paper', this WeightEvolution has 'released'"),
        ({"schedule": always}, r"schedule='StagedSigmoid\(.*, this WeightEvolution has 'always'"),
        ({"schedule": StagedSigmoid.imagenet()}, r"schedule='StagedSigmoid\(milestones=\(60, 120\)"),
    ],
)
def test_states_of_other_options(options, message):
    first = WeightEvolution(network())
    first.step()
    other = WeightEvolution(network(), **options)
    before = other.state_dict()
    with pytest.raises(ValueError, match=f"state was saved with {message}.*strict=False"):
        other.load_state_dict(first.state_dict())
    assert other.state_dict() == before
    other.load_state_dict(first.state_dict(), strict=False)
    assert other.epoch == 1
    assert other.state_dict()["options"] == before["options"]


def test_states_without_options_are_still_read():
    first, second = WeightEvolution(network()), WeightEvolution(network(), conv_rate=0.7)
    first.step()
    old = {key: value for key, value in first.state_dict().items() if key != "options"} | {"format": 1}
    second.load_state_dict(old)
    assert second.epoch == 1


def test_steps_are_counted_and_saved():
    schedule = StagedSigmoid.cifar(epochs=9)
    evolution = WeightEvolution(network(), schedule=schedule, epochs=9)
    evolution.step(epoch=3)
    evolution.step()
    assert evolution.step(epoch=8) is None
    assert (evolution.steps, evolution.epoch) == (2, 9)
    resumed = WeightEvolution(network(), schedule=schedule)
    resumed.load_state_dict(evolution.state_dict())
    assert resumed.steps == 2


def test_options_can_be_read_and_not_set():
    evolution = WeightEvolution(network(), crossover="released", norm_shift_rate="inferior", epochs=200)
    assert evolution.base_rates == {"conv": 0.2, "norm_scale": 0.05, "norm_shift": 0.05, "linear": 0.0}
    options = {
        "local_ratio": 0.1,
        "starvation_divisor": 2.0,
        "schedule": StagedSigmoid.cifar(),
        "crossover": "released",
        "importance": "l1",
        "check_finite": True,
        "epochs": 200,
    }
    for name, value in options.items():
        assert getattr(evolution, name) == value
        with pytest.raises(AttributeError):
            setattr(evolution, name, value)


def test_without_the_starvation_rule_nothing_is_counted_or_given_up():
    model = network()
    starving = {"conv_rate": 0.9, "local_ratio": 0.0, "schedule": always}
    counting = WeightEvolution(copy.deepcopy(model), starvation_divisor=2.0, **starving)
    off = WeightEvolution(model, starvation_divisor=None, **starving)
    assert [sum(counting.step().starved.values()) for _ in range(2)] != [0, 0]
    assert [sum(off.step().starved.values()) for _ in range(2)] == [0, 0]
    assert off.state_dict()["starvation"]["conv"] == 0
    assert off.state_dict()["options"]["starvation_divisor"] is None


@pytest.mark.parametrize("options", [{}, {"norm_shift_rate": "inferior"}, {"optimizer_state": "fill"}])
def test_given_importances_that_are_the_published_ones_give_the_same_bits(options, backend):
    models = [network(3), network(3)]
    reports = []
    for model, importance in zip(models, ("l1", norms_of), strict=True):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        if "optimizer_state" in options:
            model(torch.ones(2, 3, 6, 6)).sum().backward()
            optimizer.step()
        evolution = WeightEvolution(
            model,
            conv_rate=0.6,
            linear_rate=0.5,
            schedule=always,
            local_ratio=0.4,
            include=["*"],
            optimizer=optimizer,
            importance=importance,
            **options,
        )
        reports.append((evolution.preview(), evolution.step()))
    assert_unchanged(models[0], state(models[1]))
    assert sum(reports[0][1].inferior.values()) > 0
    for one, other in zip(*reports, strict=True):
        assert str(one) == str(other)
    after = [report.importance_after for _, report in reports]
    assert all(torch.equal(after[0][name], after[1][name]) for name in after[0])


def test_given_importances_decide_who_is_replaced_and_not_how():
    model, plain = network(), network()
    last = torch.arange(12, 0, -1.0)  # the last filter is the least

    def importance(bank):
        assert bank.names == ("0.weight",)
        return last

    report = WeightEvolution(
        model, include=["0"], importance=importance, conv_rate=0.1, local_ratio=1.0, schedule=always
    ).step()
    assert report.donors["0.weight"].tolist() == [-1] * 11 + [0]
    assert torch.equal(report.importance_before["0.weight"], last)
    donor = torch.tensor([-1] * 11 + [0], dtype=torch.int32)
    wk.crossover_(wk.FilterBank([plain[0].weight]), donor)
    assert torch.equal(model[0].weight, plain[0].weight)


def test_a_linear_bias_follows_its_row_whatever_the_importance():
    model = nn.Sequential(nn.Linear(3, 4))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0], [1.0], [1.0], [1.0]]).expand(4, 3))
        model[0].bias.copy_(torch.tensor([8.0, 0.0, 0.0, 4.0]))
    WeightEvolution(
        model,
        linear_rate=0.2,
        schedule=always,
        include=["*"],
        importance=lambda bank: torch.tensor([4.0, 3.0, 2.0, 1.0]),
    ).step()
    assert model[0].weight[3, 0].item() == 0.25 * 1 + 0.75 * 3
    assert model[0].bias[3].item() == 0.25 * 4 + 0.75 * 8


@pytest.mark.parametrize("bad", [math.nan, math.inf, -1.0])
def test_importances_that_are_no_good_stop_the_step(bad):
    model = network()
    before = state(model)
    evolution = WeightEvolution(model, importance=lambda bank: norms_of(bank).index_fill(0, torch.tensor([1]), bad))
    with pytest.raises(NonFiniteWeightError, match=r"^0\.weight: .*importance given is negative or not finite"):
        evolution.step()
    assert_unchanged(model, before)


def test_a_weight_that_is_not_finite_is_noticed_whatever_its_importance():
    model = network()
    model[3].weight.data[2] = math.nan
    before = state(model)
    evolution = WeightEvolution(model, importance=lambda bank: torch.ones(bank.num_filters))
    with pytest.raises(NonFiniteWeightError, match=r"^3\.weight: a weight is NaN or infinite"):
        evolution.step()
    assert_unchanged(model, before)


@pytest.mark.parametrize(
    ("importance", "error", "message"),
    [
        (lambda bank: [1.0] * bank.num_filters, TypeError, "importance must give a float32 tensor.*got list"),
        (lambda bank: torch.ones(bank.num_filters).double(), TypeError, "float32 tensor.*got torch.float64"),
        (lambda bank: torch.ones(3), ValueError, r"importance must give shape \(96,\) on cpu.*got \(3,\) on cpu"),
    ],
)
def test_importances_of_another_kind_are_refused(importance, error, message):
    model = network()
    before = state(model)
    evolution = WeightEvolution(model, importance=importance)
    for call in (evolution.step, evolution.preview):
        with pytest.raises(error, match=message):
            call()
    assert_unchanged(model, before)
    assert evolution.steps == 0


def train(model, optimizer, epoch):
    generator = torch.Generator().manual_seed(epoch)
    for _ in range(3):
        optimizer.zero_grad()
        x = torch.randn(8, 3, 6, 6, generator=generator)
        nn.functional.cross_entropy(model(x), torch.arange(8) % 7).backward()
        optimizer.step()


def starving(model):
    # Two convolutions, so the counter rises by two a step, and a filter is given up at 8: after the save below.
    return WeightEvolution(model, conv_rate=0.9, local_ratio=0.0, starvation_divisor=0.25)


def test_exact_resume():
    def fresh():
        model = network(7)
        return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), starving(model)

    model, optimizer, evolution = fresh()
    for epoch in range(6):
        train(model, optimizer, epoch)
        evolution.step()

    first, first_optimizer, first_evolution = fresh()
    for epoch in range(3):
        train(first, first_optimizer, epoch)
        first_evolution.step()
    file = io.BytesIO()
    torch.save([first.state_dict(), first_optimizer.state_dict(), first_evolution.state_dict()], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert saved[2]["starvation"]["conv"] == 6
    second, second_optimizer, second_evolution = fresh()
    for part, loaded in zip((second, second_optimizer, second_evolution), saved, strict=True):
        part.load_state_dict(loaded)
    replaced = 0
    for epoch in range(3, 6):
        train(second, second_optimizer, epoch)
        report = second_evolution.step()
        replaced += sum(report.inferior.values())
    assert report.epoch == 5
    assert replaced > 0
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    assert evolution.state_dict() == second_evolution.state_dict()


def broken_states():
    good = WeightEvolution(network()).state_dict()
    return {
        "nothing": ({}, "not a state_dict of WeightEvolution"),
        "no dict": ({**good, "filters": 3}, "not a state_dict of WeightEvolution"),
        "format": ({**good, "format": 99}, "format 99"),
        "size": (
            {**good, "filters": {**good["filters"], "3.weight": 21}},
            "3.weight has 21 filters there and 20 filters",
        ),
        "missing": (
            {**good, "filters": {k: v for k, v in good["filters"].items() if k != "1.bias"}},
            "1.bias has no filters there and 12 filters here",
        ),
        "extra": (
            {**good, "filters": {**good["filters"], "9.weight": 4}},
            "9.weight has 4 filters there and no filters",
        ),
        "groups": ({**good, "starvation": {"conv": 0}}, "counts starvation of"),
        "counter": ({**good, "starvation": {**good["starvation"], "conv": -1}}, r"state\['starvation'\]\['conv'\]"),
        "epoch": ({**good, "epoch": "3"}, r"state\['epoch'\] must be an integer"),
    }


@pytest.mark.parametrize("name", broken_states())
def test_state_of_another_model(name):
    broken, message = broken_states()[name]
    evolution = WeightEvolution(network())
    evolution.step()
    before = evolution.state_dict()
    with pytest.raises(ValueError, match=message):
        evolution.load_state_dict(broken)
    assert evolution.state_dict() == before


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, amsgrad=True),
    "Adagrad": lambda p: torch.optim.Adagrad(p, initial_accumulator_value=0.25),
    "Rprop": lambda p: torch.optim.Rprop(p, lr=0.02),
    "ASGD": lambda p: torch.optim.ASGD(p, t0=0),
    "RMSprop": lambda p: torch.optim.RMSprop(p, momentum=0.5, centered=True),
    "Adafactor": lambda p: torch.optim.Adafactor(p),
    "plain": lambda p: torch.optim.SGD(p, lr=0.01),
}
FRESH = {("Adagrad", "sum"): 0.25, ("Rprop", "step_size"): 0.02}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("choice", ["keep", "reset"])
def test_optimizer_state_of_replaced_elements(name, choice):
    model = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    evolution = WeightEvolution(
        model, conv_rate=0.6, schedule=always, local_ratio=1.0, optimizer=optimizer, optimizer_state=choice
    )
    train(model, optimizer, 0)
    weights, states = state(model), copy.deepcopy(optimizer.state)
    old = {id(p): q for p, q in zip(model.parameters(), states, strict=False)}
    evolution.step()
    for key, parameter in model.named_parameters():
        changed = parameter != weights[key]
        for field, value in optimizer.state.get(parameter, {}).items():
            before = states[old[id(parameter)]][field]
            if not isinstance(value, torch.Tensor) or value.shape != parameter.shape or choice == "keep":
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(before)) if value is not None else True
                continue
            expected = parameter if field == "ax" else torch.full_like(value, FRESH.get((name, field), 0.0))
            assert torch.equal(value[changed], expected[changed]), (key, field)
            assert torch.equal(value[~changed], before[~changed]), (key, field)
    assert any(bool((p != weights[key]).any()) for key, p in model.named_parameters())


def test_report_reads_like_a_table():
    evolution = WeightEvolution(network(), conv_rate=0.6, schedule=always, local_ratio=0.4)
    report = evolution.step(epoch=4)
    text = report.table().splitlines()
    assert text[0] == "weight evolution after epoch 4, crossover 'paper'"
    assert text[1].split() == [
        *("group", "rate", "threshold", "filters", "inferior", "starved", "unmatched", "counter")
    ]
    row = next(line for line in text if line.startswith("3.weight")).split()
    assert row[1:5] == ["20", str(report.inferior["3.weight"]), "0", str(report.unmatched["3.weight"])]
    assert len({len(line) for line in text[1:5]}) == 1


def test_report_without_batch_norm():
    report = WeightEvolution(nn.Conv2d(3, 8, 3)).step()
    assert math.isnan(report.thresholds["norm_scale"])
    assert report.counters == {"conv": 0, "norm_scale": 0, "norm_shift": 0}
    assert report.finite


def test_plot_shows_every_layer(tmp_path):
    options = {"conv_rate": 0.6, "schedule": always, "local_ratio": 0.4, "linear_rate": 0.2, "include": ["*"]}
    report = WeightEvolution(network(), **options).step()
    figure = report.plot()
    labels = [[tick.get_text() for tick in axes.get_xticklabels()] for axes in figure.axes]
    assert labels == [["0", "3"], ["1", "4"], ["1", "4"], ["8"]]
    figure.savefig(tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 10_000


def test_with_an_optimizer_its_moments_are_filled_by_default():
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    model(torch.randn(2, 3, 6, 6)).square().mean().backward()
    optimizer.step()
    evolution = WeightEvolution(
        model, conv_rate=0.6, local_ratio=1.0, schedule=always, optimizer=optimizer, include=["*"]
    )
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    assert sum(evolution.step().inferior.values()) > 0
    replaced = 0
    for name, parameter in model.named_parameters():
        changed = parameter != before[name]
        replaced += int(changed.sum())
        assert (optimizer.state[parameter]["exp_avg"][changed] == 0).all()
    assert replaced > 0
