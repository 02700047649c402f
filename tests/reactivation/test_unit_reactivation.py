"""UnitReactivation: what becomes of units, weights and optimizer state; when it acts; options, states, copies."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional

import weight_evolution as we
from tests.model import unit_networks as networks
from weight_evolution import UnitReactivation

IMAGES = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A convolution with BatchNorm, one with a bias, a flattening, a hidden Linear."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 4, 3, stride=2)
        self.hidden, self.head = nn.Linear(16, 5), nn.Linear(5, 3)

    def forward(self, x):
        x = functional.relu(self.norm(self.first(x)))
        x = functional.relu(self.second(x)).flatten(1)
        return self.head(functional.relu(self.hidden(x)))


DEAD = {"first": [2, 4], "second": [1], "hidden": [0, 3, 4]}


def sick_net():
    """Units that the data never reaches."""
    torch.manual_seed(3)
    model = Net()
    with torch.no_grad():
        for bias in (model.norm.bias, model.second.bias, model.hidden.bias):
            bias += 1  # the others live
        model.norm.bias[DEAD["first"]] = -30
        model.norm.weight += 0.5 * torch.rand(6)
        model.second.bias[DEAD["second"]] = -30
        model.hidden.bias[DEAD["hidden"]] = -30
    return model


def train(model, optimizer, reactivation=None, iterations=1):
    """The last report."""
    report = None
    for _ in range(iterations):
        optimizer.zero_grad()
        functional.cross_entropy(model(IMAGES), torch.arange(12) % 3).backward()
        optimizer.step()
        report = reactivation.step() if reactivation else None
    return report


def revive(make=torch.optim.Adam, model=None, **options):
    """After three plain iterations one that acts: model, optimizer, report, and the two before that."""
    model = model or sick_net()
    optimizer = make(model.parameters())
    train(model, optimizer, iterations=3)
    reactivation = UnitReactivation(model, optimizer, every=1, threshold=0.0, **options)
    model(IMAGES)
    before = copy.deepcopy((model, optimizer))
    report = reactivation.step()
    return model, optimizer, report, *before


def masks(**dead):
    sizes = {"first": 6, "second": 4, "hidden": 5}
    return {name: torch.tensor([unit in dead.get(name, []) for unit in range(size)]) for name, size in sizes.items()}


def test_report():
    _, _, report, *_ = revive()
    assert report.iteration == 1
    assert all(torch.equal(report.masks[name], mask) for name, mask in masks(**DEAD).items())
    assert report.revived == report.dead == {"first": 2, "second": 1, "hidden": 3}
    assert report.total == 6
    assert report.units == {"first": 6, "second": 4, "hidden": 5}
    assert report.skipped == {"head": "it is the network's output"}
    lines = report.table().splitlines()
    assert lines[0] == "reactivation at iteration 1"
    assert lines[2].split() == ["first", "6", "2", "2"]
    assert lines[-2].split() == ["all", "15", "6", "6"]
    assert lines[-1] == "skipped head: it is the network's output"


def test_weights():
    model, _, report, old, _ = revive()
    first, second, hidden = (report.masks[name] for name in ("first", "second", "hidden"))
    with torch.no_grad():
        norms = old.first.weight.abs().sum((1, 2, 3))
        torch.testing.assert_close(model.first.weight.abs().sum((1, 2, 3))[first], norms[~first].mean().expand(2))
        assert torch.equal(model.first.weight[~first], old.first.weight[~first])
        assert not torch.equal(model.first.weight[2], model.first.weight[4])
        torch.testing.assert_close(model.norm.weight[first], old.norm.weight[~first].mean().expand(2))
        for name, value in (("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            now, was = getattr(model.norm, name), getattr(old.norm, name)
            assert (now[first] == value).all()
            assert torch.equal(now[~first], was[~first])
        assert (model.second.bias[second] == 0).all()
        assert (model.second.weight[:, first] == 0).all()
        assert torch.equal(model.second.weight[~second][:, ~first], old.second.weight[~second][:, ~first])
        columns = second.repeat_interleave(4)
        assert (model.hidden.weight[:, columns] == 0).all()
        assert (model.hidden.weight[hidden][:, ~columns] != 0).all()
        assert (model.head.weight[:, hidden] == 0).all()
        assert torch.equal(model.head.weight[:, ~hidden], old.head.weight[:, ~hidden])
        assert torch.equal(model.head.bias, old.head.bias)


def test_reviving_dead_units_does_not_change_what_the_network_computes():
    model, _, report, old, _ = revive()
    assert report.total == 6
    torch.testing.assert_close(model.eval()(IMAGES), old.eval()(IMAGES), rtol=1e-5, atol=1e-6)


def test_revived_units_fire_and_learn():
    model = sick_net()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    reactivation = UnitReactivation(model, optimizer, every=5, batches=2, threshold=0.05)
    assert train(model, optimizer, reactivation, 5).total >= 6
    train(model, optimizer, reactivation, 4)
    report = train(model, optimizer, reactivation, 1)
    assert sum(report.dead.values()) <= 1
    assert (model.head.weight[:, DEAD["hidden"]] != 0).any()


@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad])
@pytest.mark.parametrize("choice", ["fill", "reset", "keep"])
def test_optimizer_state(make, choice):
    options = {"momentum": 0.9} if make is torch.optim.SGD else {}
    if make is torch.optim.Adagrad:
        options["initial_accumulator_value"] = 0.25
    model, optimizer, report, old_model, old = revive(lambda p: make(p, 1e-3, **options), optimizer_state=choice)
    first, second = report.masks["first"], report.masks["second"]
    written = {
        "first.weight": first.view(-1, 1, 1, 1).expand(6, 3, 3, 3),
        "norm.weight": first,
        "second.weight": second.view(-1, 1, 1, 1) | first.view(1, -1, 1, 1).expand(4, 6, 3, 3),
        "head.weight": report.masks["hidden"].view(1, -1).expand(3, 5),
        "head.bias": torch.zeros(3, dtype=torch.bool),
    }
    seen = 0
    for name, mask in written.items():
        now, was = optimizer.state[model.get_parameter(name)], old.state[old_model.get_parameter(name)]
        for key, value in now.items():
            if key == "step":
                assert value == was[key]
                continue
            seen += 1
            assert torch.equal(value[~mask], was[key][~mask]), (name, key)
            fresh = {"sum": 0.25}.get(key, 0.0)
            magnitude = key in ("exp_avg_sq", "square_avg", "sum")
            wanted = was[key][~mask].mean() if choice == "fill" and magnitude else torch.tensor(fresh)
            if choice == "keep":
                assert torch.equal(value, was[key])
            elif mask.any():
                torch.testing.assert_close(value[mask], wanted.expand(int(mask.sum())))
    assert seen


def test_copies_of_the_weights_in_the_optimizer_follow():
    model = sick_net()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    for parameter in model.parameters():
        optimizer.state[parameter] = {"slow": parameter.detach().clone(), "exp_avg": torch.ones_like(parameter)}
    reactivation = UnitReactivation(model, optimizer, every=1, threshold=0.0)
    model(IMAGES)
    reactivation.step()
    state = optimizer.state[model.head.weight]
    assert torch.equal(state["slow"], model.head.weight)
    assert (state["exp_avg"][:, DEAD["hidden"]] == 0).all()


def test_a_layer_that_is_dead_altogether():
    model = sick_net()
    with torch.no_grad():
        model.second.bias.fill_(-30)
    model, _, report, *_ = revive(model=model)
    assert report.revived["second"] == 4
    with torch.no_grad():
        assert 0 < model.second.weight[:, ~report.masks["first"]].abs().max() <= 54**-0.5


def test_outgoing_weights_that_are_kept():
    model, optimizer, report, old, old_optimizer = revive(outgoing="keep")
    assert torch.equal(model.head.weight, old.head.weight)
    state, was = optimizer.state[model.head.weight], old_optimizer.state[old.head.weight]
    assert torch.equal(state["exp_avg_sq"], was["exp_avg_sq"])
    assert (model.second.weight[~report.masks["second"]] == old.second.weight[~report.masks["second"]]).all()


def test_scale_of_a_donor():
    model, _, report, old, _ = revive(scale="donor")
    model.requires_grad_(False)
    old.requires_grad_(False)
    activation, dead = report.activation["hidden"], report.masks["hidden"]
    best = activation.argsort(descending=True)[:2]
    whole = old.hidden.weight.abs().sum(1)
    # The least active take the most active ones, from the start again for the third.
    kept = ~report.masks["second"].repeat_interleave(4)
    for unit, donor in zip(dead.nonzero().flatten(), [best[0], best[1], best[0]], strict=True):
        found = model.hidden.weight[unit]
        assert found[kept].abs().sum() < whole[donor]
        assert found[kept].abs().sum() == pytest.approx(float(whole[donor]) * 12 / 16, rel=0.35)
    first = report.masks["first"]
    norms = old.first.weight.abs().sum((1, 2, 3))
    best = report.activation["first"].where(~first, -1).argsort(descending=True)
    for unit, donor in zip([2, 4], best[:2], strict=True):
        torch.testing.assert_close(model.first.weight[unit].abs().sum(), norms[donor])


def test_scale_as_drawn():
    model, _, report, *_ = revive(scale="initial")
    model.requires_grad_(False)
    new = model.first.weight[report.masks["first"]]
    assert new.abs().max() <= 27**-0.5
    assert new.std() == pytest.approx((27 * 3) ** -0.5, rel=0.2)
    assert (model.norm.weight[report.masks["first"]] == 1).all()


@pytest.mark.parametrize("scale", ["layer", "initial"])
def test_init(scale):
    model, _, report, old, _ = revive(scale=scale, init=lambda weight: weight.fill_(0.5).neg_())
    first, hidden, second = (report.masks[name] for name in ("first", "hidden", "second"))
    mean = old.first.weight.abs().sum((1, 2, 3))[~first].mean()
    wanted = -(mean / 27) if scale == "layer" else torch.tensor(-0.5)
    torch.testing.assert_close(model.first.weight[first], wanted.expand(2, 3, 3, 3))
    assert (model.hidden.weight[hidden][:, second.repeat_interleave(4)] == 0).all()
    assert (model.hidden.weight[hidden][:, ~second.repeat_interleave(4)] < 0).all()
    assert torch.equal(model.first.weight[~first], old.first.weight[~first])


def test_init_of_every_kind_of_layer():
    torch.manual_seed(0)
    model = networks.ConvNet()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    reactivation = UnitReactivation(model, optimizer, every=1, threshold=1e9, init=nn.init.ones_, scale="initial")
    assert set(reactivation.graph.layers) >= {"first", "second", "up", "up_again", "hidden"}
    model(torch.randn(*networks.IMAGES))
    reactivation.step()
    for name in ("first", "hidden"):
        weight = model.get_submodule(name).weight
        assert set(weight.unique().tolist()) <= {0.0, 1.0}
    assert (model.first.weight == 1).all()
    assert (model.up.weight == 0).all()  # all of it reads units, too


def test_by_norm():
    model = sick_net()
    with torch.no_grad():
        model.hidden.weight[1] *= 1e-3
    optimizer = torch.optim.Adam(model.parameters())
    reactivation = UnitReactivation(model, optimizer, every=2, importance="l1")
    assert not model.second._forward_pre_hooks
    assert reactivation.step() is None
    report = reactivation.step()
    assert report.revived == {"first": 0, "second": 0, "hidden": 1}
    assert report.masks["hidden"][1]
    with pytest.raises(ValueError, match="not measured"):
        _ = report.activation


def test_depthwise_units_start_anew_with_those_that_they_read():
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, groups=4), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 2, 1)),
    )
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.abs_()  # the others live
            layer.bias.abs_()
        model[0].bias[1] = -90
        model[2].bias[7] = -900
        model[4].bias[[2, 3, 7]] = -1  # as they would be without what they read
        old = copy.deepcopy(model)
    for options in ({"threshold": 0.0}, {"replacement_rate": 0.375, "maturity": 0}):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        reactivation = UnitReactivation(model, optimizer, every=1, **options)
        model(IMAGES.relu())
        report = reactivation.step()
        assert report.masks["0"].tolist() == [False, True, False, False]
        assert report.masks["2"].nonzero().flatten().tolist() == [2, 3, 7]
        assert report.masks["4"].nonzero().flatten().tolist() == [2, 3, 7]
        with torch.no_grad():
            assert not torch.equal(model[2].weight[2], old[2].weight[2])
            assert (model[6].weight[:, [2, 3, 7]] == 0).all()
            model.load_state_dict(old.state_dict())


def test_a_share_of_the_least_useful():
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 7), nn.ReLU(), nn.Linear(7, 3))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    options = {"replacement_rate": 0.05, "maturity": 4, "decay": 0.9}
    reactivation = UnitReactivation.continual_backprop(model, optimizer, **options)
    sizes = [10, 7]
    utility, age, pending = [torch.zeros(n) for n in sizes], [torch.zeros(n) for n in sizes], [0.0, 0.0]
    replaced = 0
    for i in range(40):
        x = torch.randn(8, 6)
        hidden = [model[1](model[0](x))]
        hidden.append(model[3](model[2](hidden[0])))
        optimizer.zero_grad()
        functional.cross_entropy(model(x), torch.randint(3, (8,))).backward()
        optimizer.step()
        report_masks = []
        for layer, n in enumerate(sizes):  # Dohare et al., Algorithm 1
            age[layer] += 1
            out = model[2 * layer + 2].weight.detach().abs().sum(0)
            utility[layer] = 0.9 * utility[layer] + 0.1 * hidden[layer].detach().abs().mean(0) * out
            corrected = utility[layer] / (1 - 0.9 ** age[layer])
            mature = (age[layer] > 4).nonzero().flatten()
            pending[layer] += 0.05 * len(mature)
            due = int(pending[layer])
            pending[layer] -= due
            chosen = mature[corrected[mature].argsort()[:due]]
            utility[layer][chosen] = age[layer][chosen] = 0
            mask = torch.zeros(n, dtype=torch.bool)
            mask[chosen] = True
            report_masks.append(mask)
        # The hooks saw `hidden` twice, once without gradients of interest; the mean is the same.
        report = reactivation.step()
        assert [mask.tolist() for mask in report.masks.values()] == [mask.tolist() for mask in report_masks], i
        replaced += report.total
        for layer, mask in enumerate(report_masks):
            assert (model[2 * layer + 2].weight[:, mask] == 0).all()
            assert (model[2 * layer].bias[mask] == 0).all()
    assert replaced == 2 * int(0.05 * 17 * 36 / 2) or replaced > 20


def test_units_that_are_frozen_keep_their_ages_and_are_not_due():
    model = sick_net()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    reactivation = UnitReactivation.continual_backprop(model, optimizer, replacement_rate=0.5, maturity=2)
    model.hidden.weight.requires_grad_(False)
    for _ in range(6):
        report = train(model, optimizer, reactivation)
        assert "hidden" in report.skipped
        assert report.revived["hidden"] == 0
    selection = reactivation.state_dict()["selection"]
    age, utility = (torch.tensor(selection[name])[-5:] for name in ("age", "utility"))
    assert age.tolist() == [6.0] * 5
    assert selection["pending"][-1] == 0
    assert (utility > 0).sum() == 2  # all but the dead ones
    model.hidden.weight.requires_grad_(True)
    assert train(model, optimizer, reactivation).revived["hidden"] == 2  # half of five, rounded down


def test_adaptation_divides_by_the_incoming_weights():
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[4.0, 4.0], [1.0, 1.0]]))
        model[0].bias.zero_()
        model[2].weight.copy_(torch.tensor([[1.0, 2.0]]))
    for utility, lowest in (("contribution", 1), ("adaptation", 0)):
        trial = copy.deepcopy(model)
        reactivation = UnitReactivation(
            trial,
            torch.optim.SGD(trial.parameters(), 0.1),
            every=1,
            replacement_rate=0.5,
            maturity=0,
            utility=utility,
        )
        trial(torch.ones(1, 2))
        assert reactivation.step().masks["0"].nonzero().flatten().tolist() == [lowest]


def test_redo_is_as_published():
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 7), nn.ReLU(), nn.Linear(7, 3))
    with torch.no_grad():
        model[0].bias[[1, 5]] = torch.tensor([-30.0, -1.5])
        model[2].bias[3] = -30
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    reactivation = UnitReactivation.redo(model, optimizer, every=3)
    assert (reactivation.threshold, reactivation.scale, reactivation.optimizer_state) == (0.1, "initial", "reset")
    generator = torch.Generator().manual_seed(0)
    seen = []
    for _ in range(3):
        x = torch.randn(50, 6, generator=generator)
        with torch.no_grad():
            seen.append([layer(x) for layer in (model[:2], model[:4])])
        optimizer.zero_grad()
        functional.cross_entropy(model(x), torch.zeros(50).long()).backward()
        optimizer.step()
        report = reactivation.step()
    for name, features in zip(("0", "2"), zip(*seen, strict=True), strict=True):
        mean = torch.cat(features).abs().mean(0)
        assert report.masks[name].tolist() == (mean / (mean.mean() + 1e-9) <= 0.1).tolist()
    assert report.masks["0"].sum() >= 1
    dead = report.masks["0"]
    state = optimizer.state[model[0].weight]
    assert (state["exp_avg_sq"][dead] == 0).all()
    assert state["step"] == 3
    assert (optimizer.state[model[2].weight]["exp_avg"][:, dead] == 0).all()


def test_when_it_measures_and_acts():
    model = sick_net()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    reactivation = UnitReactivation(model, optimizer, every=5, batches=2)
    found = []
    for _ in range(11):
        watched = bool(model.second._forward_pre_hooks)
        model(IMAGES)
        found.append((watched, reactivation.step() is not None))
    assert [watched for watched, _ in found] == [False, False, False, True, True] * 2 + [False]
    assert [acted for _, acted in found] == [False] * 4 + [True] + [False] * 4 + [True, False]
    assert (reactivation.iterations, reactivation.steps) == (11, 2)
    reactivation.detach()
    assert not model.second._forward_pre_hooks


def test_only_the_last_batches_count():
    model = sick_net()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    reactivation = UnitReactivation(model.eval(), optimizer, every=3, batches=1)
    for scale in (100.0, 50.0, 1.0):
        model(IMAGES * scale)
        report = reactivation.step()
    with torch.no_grad():
        model = sick_net().eval()
        wanted = functional.relu(model.norm(model.first(IMAGES))).mean((0, 2, 3))
    torch.testing.assert_close(report.activation["first"], wanted, rtol=1e-5, atol=1e-7)


def test_evaluations_in_between_do_not_count():
    def report(evaluate):
        model = sick_net().eval()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        reactivation = UnitReactivation(model, optimizer, every=2)
        train(model, optimizer, reactivation)
        if evaluate:
            with torch.no_grad():
                model(100 * IMAGES)
        return train(model, optimizer, reactivation)

    alone, between = report(evaluate=False), report(evaluate=True)
    assert alone.activation.keys() == between.activation.keys()
    assert all(torch.equal(between.activation[name], own) for name, own in alone.activation.items())


def test_steps_without_a_forward_pass_are_refused():
    model = sick_net()
    reactivation = UnitReactivation(model, torch.optim.SGD(model.parameters(), 0.1), every=2)
    reactivation.step()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match="no forward pass through first, second, hidden was seen"):
        reactivation.step()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True))


def test_layers_that_are_not_trained_take_no_part():
    model = sick_net()
    model.second.weight.requires_grad_(False)
    optimizer = torch.optim.SGD([p for n, p in model.named_parameters() if not n.startswith("head")], 0.1)
    with pytest.raises(ValueError, match="no layer of the model can take part"):
        UnitReactivation(model, optimizer)
    optimizer.add_param_group({"params": model.head.parameters()})
    reactivation = UnitReactivation(model, optimizer, every=1)
    assert reactivation.skipped == {
        "head": "it is the network's output",
        "first": "second.weight is frozen",
        "second": "second.weight is frozen",
    }
    before = copy.deepcopy(model.state_dict())
    model(IMAGES)
    report = reactivation.step()
    assert report.revived == {"first": 0, "second": 0, "hidden": 3}
    assert torch.equal(model.second.weight, before["second.weight"])
    model.second.weight.requires_grad_(True)
    model.norm.bias.requires_grad_(False)
    assert reactivation.skipped["first"] == "norm.bias is frozen"
    model.norm.bias.requires_grad_(True)
    model(IMAGES)
    assert reactivation.step().revived["first"] == 2


def test_replaced_layers_are_refused():
    model = sick_net()
    reactivation = UnitReactivation(model, torch.optim.SGD(model.parameters(), 0.1), every=2, batches=1)
    model.second = nn.Conv2d(6, 4, 3)
    with pytest.raises(RuntimeError, match="a layer of the model was replaced"):
        reactivation.step()


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of the compiler, at the hook
def test_wrappers_and_names():
    model = sick_net()
    compiled = torch.compile(model, backend="eager")
    reactivation = UnitReactivation(compiled, torch.optim.SGD(model.parameters(), 0.1), every=1)
    assert list(reactivation.graph.layers) == ["first", "second", "hidden"]
    compiled(IMAGES)
    assert reactivation.step().total == 6


@pytest.mark.parametrize("at", [3, 4, 5, 7, 11])
@pytest.mark.parametrize("options", [{}, {"replacement_rate": 0.13, "maturity": 1}], ids=["dormant", "least useful"])
def test_resuming_goes_on_as_if_nothing_had_been(at, options):
    def make():
        model = sick_net()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        return model, optimizer, UnitReactivation(model, optimizer, every=5, batches=3, seed=4, **options)

    whole = make()
    train(*whole, iterations=12)
    model, optimizer, reactivation = make()
    train(model, optimizer, reactivation, at)
    states = pickle.loads(pickle.dumps([x.state_dict() for x in (model, optimizer, reactivation)]))
    copies = copy.deepcopy((model, optimizer, reactivation))
    resumed = make()
    for x, state in zip(resumed, states, strict=True):
        x.load_state_dict(state)
    for run in (resumed, copies):
        train(*run, iterations=12 - at)
        for a, b in zip(whole[0].state_dict().values(), run[0].state_dict().values(), strict=True):
            assert torch.equal(a, b)
        assert run[2].state_dict() == whole[2].state_dict()


def test_states_that_cannot_be_loaded():
    def make(**options):
        model = sick_net()
        return UnitReactivation(model, torch.optim.SGD(model.parameters(), 0.1), **options)

    reactivation = make()
    state = reactivation.state_dict()
    reactivation.load_state_dict(state)
    for change, message in (
        ({"format": 9}, "state has format 9"),
        ({"units": {"first": 6}}, "state is of another model: second has no units there"),
        ({"iteration": -1}, r"state\['iteration'\]"),
        ({"selection": 3}, "selection"),
        ({"options": state["options"] | {"seed": 7}}, "seed=7"),
    ):
        with pytest.raises(ValueError, match=message):
            reactivation.load_state_dict(state | change)
    reactivation.load_state_dict(make(threshold=0.3).state_dict(), strict=False)
    useful = make(replacement_rate=0.1)
    own = useful.state_dict()["selection"]
    for selection in ({}, own | {"utility": ["x"] * 15}):
        with pytest.raises(ValueError, match=r"state\['selection'\]\['utility'\] must be a list of 15 numbers"):
            useful.load_state_dict(useful.state_dict() | {"selection": selection})


def test_a_state_that_is_refused_changes_nothing():
    def make(iterations):
        model = sick_net()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        reactivation = UnitReactivation(model, optimizer, every=9, batches=9, replacement_rate=0.2, maturity=1)
        train(model, optimizer, reactivation, iterations)
        return model, reactivation

    _, other = make(11)
    state = other.state_dict()
    model, reactivation = make(5)
    before = reactivation.state_dict()
    activity = state["activity"]
    of_first = activity["first"][0]
    for wrong, message in (
        ({"first": activity["first"]}, "its layers or places are others"),
        (activity | {"second": 3}, "its layers or places are others"),
        (activity | {"first": [3]}, r"\['first'\] must hold the sums of 6 units"),
        (activity | {"first": [of_first | {"sums": [[1.0] * 5]}]}, r"\['first'\] must hold"),
        (activity | {"first": [of_first | {"sums": [["x"] * 6]}]}, r"\['first'\] must hold"),
        (activity | {"first": [of_first | {"counts": [2, 2]}]}, r"\['first'\] must hold"),
        (activity | {"first": [{"sums": of_first["sums"]}]}, r"\['first'\] must hold"),
    ):
        with pytest.raises(ValueError, match=message):
            reactivation.load_state_dict(state | {"activity": wrong})
        assert reactivation.state_dict() == before
    replaced, model.second = model.second, nn.Conv2d(6, 4, 3, stride=2)
    with pytest.raises(RuntimeError, match="a layer of the model was replaced"):
        reactivation.load_state_dict(state)
    model.second = replaced
    assert reactivation.state_dict() == before
    reactivation.load_state_dict(state)
    assert reactivation.state_dict() == state


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"threshold": -1}, ValueError, "threshold must be a finite number from 0"),
        ({"threshold": "0.1"}, TypeError, "threshold must be a number"),
        ({"every": 0}, ValueError, "every must be an integer from 1"),
        ({"batches": 1.5}, TypeError, "batches must be an integer"),
        ({"scale": "mean"}, ValueError, "scale must be"),
        ({"outgoing": None}, TypeError, "outgoing must be"),
        ({"optimizer_state": "forget"}, ValueError, "optimizer_state must be"),
        ({"importance": "l2"}, ValueError, "importance must be"),
        ({"replacement_rate": 0}, ValueError, r"replacement_rate must be in \(0, 1\]"),
        ({"replacement_rate": 0.1, "importance": "l1"}, ValueError, "replacement_rate goes by utility"),
        ({"maturity": -1}, ValueError, "maturity must be"),
        ({"decay": 1.0}, ValueError, "decay must be below 1"),
        ({"utility": "use"}, ValueError, "utility must be"),
        ({"init": 3}, TypeError, "init must be a callable"),
        ({"seed": -1}, ValueError, "seed must be an integer from 0"),
        ({"all_ranks": 1}, TypeError, "all_ranks must be True or False"),
        ({"include": ["none"]}, ValueError, "include"),
    ],
)
def test_bad_arguments(options, error, message):
    model = sick_net()
    with pytest.raises(error, match=message):
        UnitReactivation(model, torch.optim.SGD(model.parameters(), 0.1), **options)
    assert not model.second._forward_pre_hooks


def test_optimizers_that_cannot_be():
    model = sick_net()
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer"):
        UnitReactivation(model, None)
    with pytest.raises(ValueError, match="has none of the model's weights"):
        UnitReactivation(model, torch.optim.SGD(sick_net().parameters(), 0.1))
    with pytest.raises(TypeError, match="model must be"):
        UnitReactivation("model", torch.optim.SGD(model.parameters(), 0.1))


def test_options_are_read_only():
    model = sick_net()
    reactivation = UnitReactivation(model, torch.optim.SGD(model.parameters(), 0.1), seed=3)
    for name in ("threshold", "every", "batches", "scale", "outgoing", "seed", "optimizer_state", "replacement_rate"):
        with pytest.raises(AttributeError):
            setattr(reactivation, name, getattr(reactivation, name))


def test_exported():
    assert we.UnitReactivation is UnitReactivation
    assert {"UnitReactivation", "ReactivationReport", "UnitAdamW"} <= set(we.__all__)
