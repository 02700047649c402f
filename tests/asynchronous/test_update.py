"""AsynchronousUpdate around every kind of optimizer: exact against a twin that takes the plain step."""

import numpy as np
import pytest
import torch
from torch import nn, optim
from torch.optim import lr_scheduler

from tests.asynchronous.twins import (
    BATCHES,
    CONVS,
    assert_masked,
    backward,
    copy_gradients,
    copy_weights,
    make_net,
    snapshot,
)
from weight_evolution import AsynchronousSGD, AsynchronousUpdate

OPTIMIZERS = {
    "sgd": lambda p: optim.SGD(p, lr=0.1),
    "sgd momentum": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.3, weight_decay=0.01),
    "sgd nesterov foreach": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, foreach=True),
    "sgd loop maximize": lambda p: optim.SGD(p, lr=0.1, maximize=True, foreach=False),
    "sgd fused": lambda p: optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "adam": lambda p: optim.Adam(p, lr=0.01),
    "adam amsgrad foreach": lambda p: optim.Adam(p, lr=0.01, amsgrad=True, foreach=True, weight_decay=0.1),
    "adamw fused": lambda p: optim.AdamW(p, lr=0.01, fused=True),
    "adamw loop": lambda p: optim.AdamW(p, lr=0.01, foreach=False),
    "rmsprop": lambda p: optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda p: optim.Adagrad(p, lr=0.01),
    "adadelta": lambda p: optim.Adadelta(p, lr=1.0),
    "nadam": lambda p: optim.NAdam(p, lr=0.01),
    "rprop": lambda p: optim.Rprop(p, lr=0.01),
}
DIMS = {name: dim for name, (_, dim) in CONVS.items()}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moved_filters_are_the_plain_step_and_the_others_keep_their_bits(name):
    """At every step the twin starts from the same weights, gradients and state."""
    model, twin = make_net(), make_net()
    optimizer, plain = OPTIMIZERS[name](model.parameters()), OPTIMIZERS[name](twin.parameters())
    update = AsynchronousUpdate(optimizer, model, rate=0.4, seed=3)
    for step, batch in enumerate(BATCHES):
        optimizer.zero_grad()
        backward(model, batch)
        copy_weights(model, twin)
        copy_gradients(model, twin)
        selection = update.selection()
        assert {key: int(mask.sum()) for key, mask in selection.items()} == {
            key: max(1, round(0.4 * size)) for key, (size, _) in CONVS.items()
        }
        before = snapshot(model)
        optimizer.step()
        plain.step()
        assert_masked(before, snapshot(twin), snapshot(model), selection, DIMS)
        assert update.step_count == step + 1
    ours, theirs = optimizer.state_dict()["state"], plain.state_dict()["state"]
    assert ours.keys() == theirs.keys()
    for key, state in ours.items():
        for entry, value in state.items():
            assert not isinstance(value, torch.Tensor) or torch.equal(value, theirs[key][entry]), entry


@pytest.mark.parametrize("backend", ["torch", "native"])
def test_backends_agree(backend, monkeypatch):
    weights = []
    for name in ("torch", backend):
        monkeypatch.setenv("WE_KERNELS_BACKEND", name)
        model = make_net()
        optimizer = optim.Adam(model.parameters(), lr=0.01)
        AsynchronousUpdate(optimizer, model)
        for batch in BATCHES:
            optimizer.zero_grad()
            backward(model, batch)
            optimizer.step()
        weights.append(snapshot(model))
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_subsets_differ_between_steps_layers_and_seeds_and_reach_every_filter():
    model = make_net()
    updates = []
    for seed in (0, 1):
        optimizer = optim.SGD(model.parameters(), lr=0.1)
        updates.append(AsynchronousUpdate(optimizer, model, seed=seed))
    masks = [updates[0].selection(step) for step in range(40)]
    assert masks[0]["stem.weight"].tolist() != masks[0]["depthwise.weight"].tolist()
    assert len({tuple(mask["stem.weight"].tolist()) for mask in masks}) > 20
    assert masks[0]["stem.weight"].tolist() != updates[1].selection(0)["stem.weight"].tolist()
    assert all(sum(mask[name] for mask in masks).min() > 5 for name in CONVS)
    assert updates[0].step_count == 0


def test_rate_one_is_the_plain_optimizer():
    model, twin = make_net(), make_net()
    optimizer, plain = (optim.SGD(net.parameters(), lr=0.1, momentum=0.9) for net in (model, twin))
    AsynchronousUpdate(optimizer, model, rate=1.0)
    for batch in BATCHES:
        for net, one in ((model, optimizer), (twin, plain)):
            one.zero_grad()
            backward(net, batch)
            one.step()
    twins = snapshot(twin)
    assert all(torch.equal(value, twins[name]) for name, value in snapshot(model).items())


def test_the_smallest_rate_moves_one_filter_of_each_layer():
    model = make_net()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    update = AsynchronousUpdate(optimizer, model, rate=1e-6)
    assert [int(mask.sum()) for mask in update.selection().values()] == [1, 1, 1, 1]
    for options in ({"select": "input_channels"}, {"select": "input_channels", "replacement": True}):
        update.detach()
        update = AsynchronousUpdate(optimizer, model, rate=1e-6, **options)
        assert [int(mask.sum()) for mask in update.selection().values()] == [1, 1, 1, 1]


def test_input_channels_with_replacement_as_released():
    """The mask lies along dimension 1 of a convolution's weight, 0 of a transposed one's; all filters share it."""
    model, twin = make_net(), make_net()
    optimizer, plain = (optim.SGD(net.parameters(), lr=0.1) for net in (model, twin))
    update = AsynchronousUpdate(optimizer, model, select="input_channels", replacement=True)
    backward(model, BATCHES[0])
    copy_gradients(model, twin)
    selection, before = update.selection(), snapshot(model)
    assert {name: len(mask) for name, mask in selection.items()} == {
        "stem.weight": 3,
        "depthwise.weight": 1,
        "grouped.weight": 4,
        "up.weight": 6,
    }
    assert selection["depthwise.weight"].tolist() == [True]
    optimizer.step()
    plain.step()
    dims = dict.fromkeys(CONVS, 1) | {"up.weight": 0}
    assert_masked(before, snapshot(twin), snapshot(model), selection, dims)
    wide = nn.Conv2d(1000, 2, 1)
    moved = AsynchronousUpdate(
        optim.SGD(wide.parameters()), wide, select="input_channels", replacement=True
    ).selection()
    assert float(moved["weight"].float().mean()) == pytest.approx(1 - (1 - 1 / 1000) ** 500, abs=0.03)


@pytest.mark.parametrize("replacement", [False, True])
def test_rescale_divides_by_the_expected_share(replacement):
    model, twin = make_net(), make_net()
    optimizer, plain = (optim.SGD(net.parameters(), lr=0.1) for net in (model, twin))
    update = AsynchronousUpdate(optimizer, model, rate=0.4, replacement=replacement, rescale=True)
    for batch in BATCHES[:2]:
        optimizer.zero_grad()
        backward(model, batch)
        copy_weights(model, twin)
        copy_gradients(model, twin)
        selection, before = update.selection(), snapshot(model)
        optimizer.step()
        plain.step()
        after, full = snapshot(model), snapshot(twin)
        for name, (size, dim) in CONVS.items():
            draws = max(1, int(0.4 * size))
            share = 1 - (1 - 1 / size) ** draws if replacement else max(1, round(0.4 * size)) / size
            new, old, whole = (x[name].movedim(dim, 0) for x in (after, before, full))
            moves = selection[name]
            torch.testing.assert_close(new[moves], (old + (whole - old) / share)[moves])
            assert torch.equal(new[~moves], old[~moves])
        assert torch.equal(after["fc.weight"], full["fc.weight"])


def test_lbfgs_evaluates_its_closure_on_its_own_weights():
    model, twin = make_net(), make_net()
    optimizer, plain = (optim.LBFGS(net.parameters(), lr=0.1, max_iter=4) for net in (model, twin))
    update = AsynchronousUpdate(optimizer, model)
    losses = {0: [], 1: []}
    before, selection = snapshot(model), update.selection()
    for i, (net, one) in enumerate(((model, optimizer), (twin, plain))):

        def closure(i=i, net=net, one=one):
            one.zero_grad()
            loss = backward(net, BATCHES[0])
            losses[i].append(loss.item())
            return loss

        one.step(closure)
    assert losses[0] == losses[1]
    assert len(losses[0]) > 2
    assert_masked(before, snapshot(twin), snapshot(model), selection, DIMS)


def test_a_closure_of_sgd_sees_the_weights_before_the_step():
    model = make_net()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    AsynchronousUpdate(optimizer, model)
    before = snapshot(model)

    def closure():
        assert all(torch.equal(value, before[name]) for name, value in snapshot(model).items())
        optimizer.zero_grad()
        return backward(model, BATCHES[0])

    assert float(optimizer.step(closure).detach()) > 0
    assert not torch.equal(model.stem.weight, before["stem.weight"])


def test_parameter_groups_and_schedulers():
    model, twin = make_net(), make_net()

    def make(net):
        groups = [{"params": net.up.parameters(), "lr": 0.5}, {"params": [*net.stem.parameters(), net.grouped.weight]}]
        one = optim.SGD(groups, lr=0.1, momentum=0.9)
        return one, lr_scheduler.StepLR(one, 1, gamma=0.5)

    (optimizer, schedule), (plain, plain_schedule) = make(model), make(twin)
    update = AsynchronousUpdate(optimizer, model)
    assert update.skipped == {"depthwise.weight": "not among the optimizer's parameters"}
    assert list(update.selection()) == ["stem.weight", "grouped.weight", "up.weight"]
    for batch in BATCHES:
        model.zero_grad()
        backward(model, batch)
        copy_weights(model, twin)
        copy_gradients(model, twin)
        selection, before = update.selection(), snapshot(model)
        optimizer.step()
        plain.step()
        schedule.step()
        plain_schedule.step()
        assert_masked(before, snapshot(twin), snapshot(model), selection, DIMS)
        assert torch.equal(model.depthwise.weight, before["depthwise.weight"])


def test_include_exclude_and_shared_weights():
    model = make_net()
    model.again = nn.Conv2d(3, 8, 3)
    model.again.weight = model.stem.weight
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    update = AsynchronousUpdate(optimizer, model, exclude=["up", nn.Linear], include=["stem", "again", "up", "fc"])
    assert list(update.selection()) == ["stem.weight"]
    assert update.skipped == {
        "depthwise.weight": "not included",
        "grouped.weight": "not included",
        "up.weight": "excluded",
        "again.weight": "shared with a parameter listed before",
    }


def test_frozen_convolutions_stay_and_join_when_thawed():
    model = make_net()
    model.grouped.weight.requires_grad_(False)
    optimizer = optim.AdamW(model.parameters(), lr=0.01)
    update = AsynchronousUpdate(optimizer, model, rescale=True)
    backward(model, BATCHES[0])
    before = snapshot(model)
    optimizer.step()
    assert torch.equal(model.grouped.weight, before["grouped.weight"])
    model.grouped.weight.requires_grad_(True)
    optimizer.zero_grad()
    backward(model, BATCHES[1])
    selection = update.selection()["grouped.weight"]
    optimizer.step()
    moved = (model.grouped.weight != before["grouped.weight"]).flatten(1).any(1)
    assert moved.tolist() == selection.tolist()


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_a_grad_scaler_skips_draw_nothing(fused):
    model = make_net()
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=fused)
    update = AsynchronousUpdate(optimizer, model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    moved = []
    for step, batch in enumerate(BATCHES):
        optimizer.zero_grad()
        images, targets = batch
        scaler.scale(nn.functional.cross_entropy(model(images), targets)).backward()
        if step == 1:
            model.fc.weight.grad[0, 0] = float("inf")
        before, selection = model.stem.weight.detach().clone(), update.selection()["stem.weight"]
        scaler.step(optimizer)
        scaler.update()
        rows = (model.stem.weight != before).flatten(1).any(1)
        moved.append(rows.tolist())
        assert rows.tolist() == (selection.tolist() if step != 1 else [False] * 8)
    assert update.step_count == 3
    assert moved[2] == update.selection(1)["stem.weight"].tolist()


def test_an_error_within_the_step_leaves_the_weights_and_the_next_subset(monkeypatch):
    model = make_net()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    update = AsynchronousUpdate(optimizer, model)
    backward(model, BATCHES[0])
    before, selection = snapshot(model), update.selection()

    def fail():
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        optimizer.step(fail)
    assert all(torch.equal(value, before[name]) for name, value in snapshot(model).items())
    assert update.step_count == 0
    optimizer.step()
    rows = (model.stem.weight != before["stem.weight"]).flatten(1).any(1)
    assert rows.tolist() == selection["stem.weight"].tolist()


def test_detach_leaves_the_plain_optimizer():
    model, twin = make_net(), make_net()
    optimizer, plain = (optim.Adam(net.parameters(), lr=0.01) for net in (model, twin))
    update = AsynchronousUpdate(optimizer, model)
    update.detach()
    update.detach()
    for net, one in ((model, optimizer), (twin, plain)):
        backward(net, BATCHES[0])
        one.step()
    twins = snapshot(twin)
    assert all(torch.equal(value, twins[name]) for name, value in snapshot(model).items())
    AsynchronousUpdate(optimizer, model)


@pytest.mark.parametrize("options", [{}, {"select": "input_channels", "replacement": True, "rescale": True}])
def test_resume_is_exact(tmp_path, options):
    def start(seed):
        model = make_net()
        optimizer = optim.Adam(model.parameters(), lr=0.01)
        return model, optimizer, AsynchronousUpdate(optimizer, model, rate=0.3, seed=seed, **options)

    def train(model, optimizer, batches):
        for batch in batches:
            optimizer.zero_grad()
            backward(model, batch)
            optimizer.step()

    model, optimizer, update = start(5)
    train(model, optimizer, BATCHES[:2])
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "update": update.state_dict()}
    torch.save(state, tmp_path / "state.pt")
    train(model, optimizer, BATCHES[2:])
    again, second, resumed = start(7)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    again.load_state_dict(state["model"])
    second.load_state_dict(state["optimizer"])
    resumed.load_state_dict(state["update"])
    assert resumed.step_count == 2
    train(again, second, BATCHES[2:])
    assert resumed.state_dict() == update.state_dict()
    found = snapshot(again)
    assert all(torch.equal(value, found[name]) for name, value in snapshot(model).items())


def test_a_model_that_moves_or_changes_dtype():
    model = make_net()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    update = AsynchronousUpdate(optimizer, model, rescale=True)
    for change in (lambda: None, model.double, lambda: model.to(memory_format=torch.channels_last)):
        change()
        optimizer.zero_grad()
        dtype = model.stem.weight.dtype
        backward(model, (BATCHES[0][0].to(dtype), BATCHES[0][1]))
        before, selection = model.stem.weight.detach().clone(), update.selection()["stem.weight"]
        optimizer.step()
        assert (model.stem.weight != before).flatten(1).any(1).tolist() == selection.tolist()


class Replacing(optim.SGD):
    """Gives its parameters other memory within its step."""

    change = staticmethod(lambda data: data.clone())

    @torch.no_grad()
    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data = self.change(parameter.data)


def other_strides(data):
    return data.clone(memory_format=torch.channels_last) if data.dim() == 4 else data.t().clone().t()


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("start", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(
    "change",
    [lambda d: d.clone(), lambda d: d.contiguous(), other_strides, lambda d: d.bfloat16(), lambda d: d.double()],
    ids=["moved", "contiguous", "other strides", "bfloat16", "float64"],
)
def test_weights_that_get_other_memory_within_the_step(change, start, rescale):
    model, twin = (make_net().to(memory_format=start) for _ in range(2))
    optimizer, plain = Replacing(model.parameters(), lr=0.1), optim.SGD(twin.parameters(), lr=0.1)
    optimizer.change = change
    update = AsynchronousUpdate(optimizer, model, rescale=rescale)
    for step in range(2):
        optimizer.zero_grad()
        dtype = model.stem.weight.dtype
        backward(model.to(dtype), (BATCHES[0][0].to(dtype), BATCHES[0][1]))
        twin.to(dtype)
        copy_weights(model, twin)
        copy_gradients(model, twin)
        selection, before = update.selection(), snapshot(model)
        optimizer.step()
        plain.step()
        assert update.step_count == step + 1
        after, full = snapshot(model), snapshot(twin)
        for name, dim in DIMS.items():
            moves = selection[name]
            new, old, whole = (x[name].to(after[name].dtype).movedim(dim, 0) for x in (after, before, full))
            assert torch.equal(new[~moves], old[~moves])
            assert rescale or torch.equal(new[moves], whole[moves])
            assert (new[moves] != old[moves]).any()
        assert after["stem.weight"].dtype == change(before["stem.weight"]).dtype


def test_weights_that_change_their_shape_within_the_step_are_reported():
    model = make_net()
    optimizer = Replacing(model.parameters(), lr=0.1)
    update = AsynchronousUpdate(optimizer, model)
    optimizer.change = lambda data: data[..., :1]
    with pytest.raises(
        (RuntimeError, ValueError), match=r"optimizer.step\(\) changed the shape of a convolution's weight"
    ):
        optimizer.step()
    assert update.step_count == 0


def test_numpy_numbers():
    model = make_net()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    update = AsynchronousUpdate(optimizer, model, rate=np.float32(0.25), seed=np.int64(3))
    assert update.selection(np.int32(2)).keys() == CONVS.keys()
    update.rate = np.float16(0.5)
    assert torch.tensor([update.state_dict()[key] for key in ("rate", "seed")]).tolist() == [0.5, 3.0]
    assert type(update.state_dict()["rate"]) is float
    assert type(update.state_dict()["seed"]) is int
    with pytest.raises(TypeError, match="seed must be an integer"):
        AsynchronousUpdate(optim.SGD(model.parameters()), model, seed=np.float64(3))
    with pytest.raises(TypeError, match="rate must be a number"):
        AsynchronousUpdate(optim.SGD(model.parameters()), model, rate=np.bool_(True))


def parametrized():
    model = make_net()
    nn.utils.parametrizations.weight_norm(model.stem)
    return model


SGD = optim.SGD
BAD = {
    "optimizer": (lambda m, o: AsynchronousUpdate(m, m), TypeError, "optimizer must be a torch.optim.Optimizer"),
    "model": (lambda m, o: AsynchronousUpdate(o, o), TypeError, "model must be a torch.nn.Module"),
    "rate zero": (lambda m, o: AsynchronousUpdate(o, m, rate=0), ValueError, r"rate must be in \(0, 1\], got 0"),
    "rate above": (lambda m, o: AsynchronousUpdate(o, m, 1.5), ValueError, r"rate must be in \(0, 1\], got 1.5"),
    "rate nan": (lambda m, o: AsynchronousUpdate(o, m, float("nan")), ValueError, "rate must be in"),
    "rate type": (lambda m, o: AsynchronousUpdate(o, m, "half"), TypeError, "rate must be a number"),
    "seed": (lambda m, o: AsynchronousUpdate(o, m, seed=-1), ValueError, "seed must be an integer from 0"),
    "seed type": (lambda m, o: AsynchronousUpdate(o, m, seed=1.0), TypeError, "seed must be an integer"),
    "select": (lambda m, o: AsynchronousUpdate(o, m, select="rows"), ValueError, "select must be .* got 'rows'"),
    "no convolution": (
        lambda m, o: AsynchronousUpdate(SGD(m.fc.parameters()), m.fc),
        ValueError,
        "no convolution of the model to update: the model has none",
    ),
    "other parameters": (
        lambda m, o: AsynchronousUpdate(SGD(m.fc.parameters()), m),
        ValueError,
        "left out: stem.weight.* and [0-9]+ more: not among the optimizer's parameters",
    ),
    "exclude": (lambda m, o: AsynchronousUpdate(o, m, exclude=["x"]), ValueError, "exclude: 'x' matches no module"),
    "parametrized": (
        lambda m, o: (lambda n: AsynchronousUpdate(SGD(n.parameters()), n))(parametrized()),
        TypeError,
        "stem.weight is computed from other parameters",
    ),
    "lazy": (
        lambda m, o: (lambda n: AsynchronousUpdate(SGD(n.parameters()), n))(nn.LazyConv2d(3, 3)),
        TypeError,
        "run one forward pass first",
    ),
    "asynchronous sgd": (
        lambda m, o: AsynchronousUpdate(AsynchronousSGD(m.parameters(), model=m), m),
        ValueError,
        "optimizer is an AsynchronousSGD",
    ),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_bad_arguments_attach_nothing(name):
    call, error, message = BAD[name]
    model = make_net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(error, match=message):
        call(model, optimizer)
    assert not optimizer._optimizer_step_pre_hooks
    AsynchronousUpdate(optimizer, model)


def test_attaching_twice_is_an_error():
    model = make_net()
    optimizer = SGD(model.parameters(), lr=0.1)
    update = AsynchronousUpdate(optimizer, model)
    with pytest.raises(ValueError, match=r"call its detach\(\) first"):
        AsynchronousUpdate(optimizer, model)
    with pytest.raises(ValueError, match="rate must be in"):
        update.rate = 2.0
    assert update.rate == 0.5


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own imports
def test_names_and_states_know_no_wrappers():
    model, other = make_net(), make_net()
    wrapped = nn.DataParallel(torch.compile(model, backend="eager"))
    update = AsynchronousUpdate(SGD(model.parameters(), lr=0.1), wrapped, seed=4, exclude=["stem"])
    plain = AsynchronousUpdate(SGD(other.parameters(), lr=0.1), other, exclude=["stem"])
    assert list(update.selection()) == list(plain.selection()) == list(CONVS)[1:]
    plain.load_state_dict(update.state_dict())
    assert plain.state_dict() == update.state_dict()
    state = update.state_dict()
    state["filters"] = {f"module._orig_mod.{name}": size for name, size in state["filters"].items()}
    plain.load_state_dict(state)  # of an earlier version
    state["filters"]["module._orig_mod.up.weight"] += 1
    with pytest.raises(ValueError, match=r"up\.weight has 5 filters there and 4 filters here"):
        plain.load_state_dict(state)


def test_steps_of_both_forms_are_counted():
    model, other = make_net(), make_net()
    optimizer = SGD(model.parameters(), lr=0.1)
    update = AsynchronousUpdate(optimizer, model)
    own = AsynchronousSGD(other.parameters(), lr=0.1, model=other)
    for network, one in ((model, optimizer), (other, own)):
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        one.step()
        one.step()
    assert (update.steps, update.step_count, own.steps, own.step_count) == (2, 2, 2, 2)
    for name in ("steps", "step_count"):
        with pytest.raises(AttributeError):
            setattr(update, name, 3)


@pytest.mark.parametrize("option", ["replacement", "rescale"])
def test_flags_are_true_or_false(option):
    model = make_net()
    with pytest.raises(TypeError, match=f"{option} must be True or False, got 1"):
        AsynchronousUpdate(SGD(model.parameters(), lr=0.1), model, **{option: 1})


def test_states_that_do_not_fit_change_nothing():
    model = make_net()
    update = AsynchronousUpdate(SGD(model.parameters(), lr=0.1), model, seed=4)
    state = update.state_dict()
    for change, message in [
        ({"format": 2}, "has format 2"),
        ({"select": "input_channels"}, "select='input_channels', this object has 'filters'"),
        ({"rescale": True}, "rescale=True"),
        ({"filters": state["filters"] | {"stem.weight": 9}}, "stem.weight has 9 filters there and 8 filters here"),
        ({"filters": dict(reversed(state["filters"].items()))}, "another order"),
        ({"step": -1}, r"state\['step'\] must be an integer from 0"),
        ({"seed": "x"}, r"state\['seed'\] must be an integer"),
        ({"rate": 0.0}, "rate'\\] must be in"),
    ]:
        with pytest.raises(ValueError, match=message):
            update.load_state_dict(state | {"seed": 9, "step": 3} | change)
    with pytest.raises(ValueError, match="not a state_dict of AsynchronousUpdate"):
        update.load_state_dict({"step": 3})
    assert update.state_dict() == state
