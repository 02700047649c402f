"""AsynchronousSGD: SGD's bits at rate 1, AsynchronousUpdate's bits around SGD at any other, SGD's state."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import SGD

from tests.asynchronous.twins import BATCHES, CONVS, backward, make_net, snapshot
from weight_evolution import AsynchronousSGD, AsynchronousUpdate

OPTIONS = {
    "plain": {},
    "momentum": {"momentum": 0.9, "dampening": 0.25, "weight_decay": 0.01},
    "nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01, "foreach": False},
    "maximize": {"momentum": 0.5, "maximize": True, "foreach": True},
    "tensors": {"lr": torch.tensor(0.1), "momentum": 0.9},
}
WAYS = {
    "filters": {"rate": 0.4, "seed": 3},
    "channels": {"rate": 0.6, "select": "input_channels", "replacement": True},
}


def train(model, optimizer, batches=BATCHES):
    for batch in batches:
        optimizer.zero_grad()
        backward(model, batch)
        optimizer.step()
    return snapshot(model)


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_rate_one_is_sgd_bit_for_bit(name, dtype):
    models = [make_net().to(dtype) for _ in range(2)]
    options = {"lr": 0.1} | OPTIONS[name]
    optimizers = [
        SGD(models[0].parameters(), **options | {"foreach": True}),
        AsynchronousSGD(models[1].parameters(), **options, model=models[1], rate=1.0),
    ]
    batches = [(images.to(dtype), targets) for images, targets in BATCHES]
    found = [train(model, optimizer, batches) for model, optimizer in zip(models, optimizers, strict=True)]
    assert_equal(*found)
    states = [optimizer.state_dict()["state"] for optimizer in optimizers]
    assert states[0].keys() == states[1].keys()
    for key, state in states[0].items():
        assert state.keys() == states[1][key].keys()
        assert all(v is states[1][key][k] or torch.equal(v, states[1][key][k]) for k, v in state.items())


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("way", WAYS)
def test_is_asynchronous_update_around_sgd(name, way):
    models = [make_net() for _ in range(2)]
    options = {"lr": 0.1} | OPTIONS[name]
    plain = SGD(models[0].parameters(), **options | {"foreach": True})
    update = AsynchronousUpdate(plain, models[0], **WAYS[way])
    fused = AsynchronousSGD(models[1].parameters(), **options, model=models[1], **WAYS[way])
    assert_equal(train(models[0], plain), train(models[1], fused))
    assert fused.step_count == update.step_count == len(BATCHES)
    assert_equal(update.selection(), fused.selection())


@pytest.mark.parametrize("replacement", [False, True])
def test_rescale(replacement):
    """One step without momentum: the selected filters move by 1 / share of SGD's step."""
    models = [make_net() for _ in range(2)]
    plain = SGD(models[0].parameters(), lr=0.1)
    options = {"rate": 0.4, "replacement": replacement, "rescale": True}
    fused = AsynchronousSGD(models[1].parameters(), lr=0.1, model=models[1], **options)
    before, selection = snapshot(models[0]), fused.selection()
    full, after = train(models[0], plain, BATCHES[:1]), train(models[1], fused, BATCHES[:1])
    for name, (size, dim) in CONVS.items():
        share = 1 - (1 - 1 / size) ** max(1, int(0.4 * size)) if replacement else max(1, round(0.4 * size)) / size
        new, old, whole = (x[name].movedim(dim, 0) for x in (after, before, full))
        moves = selection[name]
        torch.testing.assert_close(new[moves], (old + (whole - old) / share)[moves], rtol=1e-4, atol=1e-6)
        assert torch.equal(new[~moves], old[~moves])
    assert torch.equal(after["fc.weight"], full["fc.weight"])


def test_transposed_convolutions_with_groups():
    """Their filters are a view of the parameter; gradients and momentum are seen the same way."""

    def make():
        torch.manual_seed(1)
        return nn.Sequential(nn.ConvTranspose2d(6, 3, 2, groups=3), nn.ConvTranspose2d(3, 6, 2, groups=3))

    models = [make() for _ in range(2)]
    plain = SGD(models[0].parameters(), lr=0.1, momentum=0.9)
    AsynchronousUpdate(plain, models[0])
    fused = AsynchronousSGD(models[1].parameters(), lr=0.1, momentum=0.9, model=models[1])
    for _ in range(3):
        for model, optimizer in zip(models, (plain, fused), strict=True):
            optimizer.zero_grad()
            model(torch.ones(1, 6, 3, 3)).square().sum().backward()
            optimizer.step()
    assert_equal(snapshot(models[0]), snapshot(models[1]))
    assert fused.state[models[1][0].weight]["momentum_buffer"].shape == models[1][0].weight.shape


def test_transposed_convolutions_with_groups_in_other_memory_formats():
    """Their weight is refused where its filters are no view; a loaded momentum of such a format is used as a copy."""
    weight = nn.ConvTranspose2d(4, 12, 2, groups=4)
    model = copy.deepcopy(weight).to(memory_format=torch.channels_last)
    optimizer = SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="weight must be contiguous, a transposed convolution with groups"):
        AsynchronousUpdate(optimizer, model)
    models = [copy.deepcopy(weight) for _ in range(2)]
    optimizers = [AsynchronousSGD(model.parameters(), lr=0.1, momentum=0.9, model=model) for model in models]
    for step in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            model(torch.ones(1, 4, 3, 3)).square().sum().backward()
            if step == 1 and model is models[1]:
                state = optimizer.state[model.weight]
                state["momentum_buffer"] = state["momentum_buffer"].to(memory_format=torch.channels_last)
            optimizer.step()
    assert_equal(snapshot(models[0]), snapshot(models[1]))


def test_groups_frozen_and_listed_weights():
    model, listed = make_net(), make_net()

    def make(net, **options):
        net.grouped.weight.requires_grad_(False)
        others = [p for n, p in net.named_parameters() if not n.startswith("fc.")]
        groups = [{"params": net.fc.parameters(), "momentum": 0.0, "weight_decay": 0.1}, {"params": others}]
        return AsynchronousSGD(groups, lr=0.1, momentum=0.9, **options)

    first = make(model, model=model, exclude=["up"])
    second = make(listed, conv_weights=[listed.stem.weight, listed.depthwise.weight, listed.grouped.weight])
    before = snapshot(model)
    assert_equal(train(model, first), train(listed, second))
    assert torch.equal(model.grouped.weight, before["grouped.weight"])
    assert model.grouped.weight not in first.state
    assert "momentum_buffer" not in first.state[model.fc.weight]
    assert first.skipped == {"up.weight": "excluded"}
    assert list(second.selection()) == ["conv_weights[0]", "conv_weights[1]", "conv_weights[2]"]


def test_closures_and_schedulers():
    model, twin = make_net(), make_net()
    options = {"lr": 0.2, "momentum": 0.9}
    optimizers = AsynchronousSGD(model.parameters(), **options, model=model), SGD(twin.parameters(), **options)
    AsynchronousUpdate(optimizers[1], twin)
    for net, optimizer in zip((model, twin), optimizers, strict=True):
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        for batch in BATCHES:

            def closure(net=net, optimizer=optimizer, batch=batch):
                optimizer.zero_grad()
                return backward(net, batch)

            assert optimizer.step(closure).isfinite()
            schedule.step()
    assert_equal(snapshot(model), snapshot(twin))


def test_a_skipped_step_draws_nothing():
    model = make_net()
    optimizer = AsynchronousSGD(model.parameters(), lr=0.1, model=model)
    scaler = torch.amp.GradScaler("cpu")
    before = snapshot(model)
    scaler.scale(backward(model, BATCHES[0]))
    model.fc.weight.grad[0] = float("nan")
    scaler.step(optimizer)
    assert optimizer.step_count == 0
    assert_equal(snapshot(model), before)


def test_state_is_sgds_and_resumes_exactly(tmp_path):
    def start(seed):
        model = make_net()
        return model, AsynchronousSGD(model.parameters(), lr=0.1, momentum=0.9, model=model, rate=0.3, seed=seed)

    model, optimizer = start(5)
    train(model, optimizer, BATCHES[:2])
    torch.save([model.state_dict(), optimizer.state_dict()], tmp_path / "state.pt")
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    expected = train(model, optimizer, BATCHES[2:])
    again, resumed = start(8)
    again.load_state_dict(weights)
    resumed.load_state_dict(state)
    assert state.keys() == {"state", "param_groups", "asynchronous"}
    assert_equal(train(again, resumed, BATCHES[2:]), expected)

    # SGD reads it, carries the subsets on in its first group, and is read.
    net = make_net()
    plain = SGD(net.parameters(), lr=0.5)
    plain.load_state_dict(state)
    assert plain.param_groups[0]["momentum"] == 0.9
    resumed.load_state_dict(plain.state_dict())
    assert resumed.step_count == 2
    assert "asynchronous" not in resumed.param_groups[0]

    # Without an entry the subsets go on as they were.
    train(again, resumed, BATCHES[2:])
    resumed.load_state_dict(SGD(net.parameters(), lr=0.1).state_dict())
    assert resumed.step_count == 4

    groups = [state["param_groups"][0] | {"lr": 0.7}]
    wrong = state | {"param_groups": groups, "asynchronous": state["asynchronous"] | {"select": "input_channels"}}
    with pytest.raises(ValueError, match="select='input_channels'"):
        resumed.load_state_dict(wrong)
    assert resumed.param_groups[0]["lr"] == 0.1
    with pytest.raises(ValueError, match="parameter group"):
        resumed.load_state_dict({**state, "param_groups": []})
    assert resumed.step_count == 4


def test_copies_step_alone():
    model = make_net()
    optimizer = AsynchronousSGD(model.parameters(), lr=0.1, momentum=0.9, model=model)
    train(model, optimizer, BATCHES[:1])
    again, second = copy.deepcopy((model, optimizer))
    assert_equal(train(model, optimizer, BATCHES[1:]), train(again, second, BATCHES[1:]))


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "nesterov": True}, {"momentum": 0.9, "dampening": 0.2}])
def test_other_dtypes_of_gradients_and_momentum_as_sgd_takes_them(options):
    """Weights become float64 after a step, momentum stays float32; then weights alone become bfloat16."""
    models = [make_net() for _ in range(2)]
    options = {"lr": 0.1, "weight_decay": 0.01} | options
    plain = SGD(models[0].parameters(), **options, foreach=True)
    AsynchronousUpdate(plain, models[0], rate=0.4)
    fused = AsynchronousSGD(models[1].parameters(), **options, model=models[1], rate=0.4)
    images, targets = BATCHES[0]
    for step in range(5):
        for model, optimizer in zip(models, (plain, fused), strict=True):
            dtype = torch.float64 if step > 1 else torch.float32
            optimizer.zero_grad()
            backward(model.to(dtype), (images.to(dtype), targets))
            if step == 4:
                for parameter in model.parameters():
                    parameter.data = parameter.data.bfloat16()
            optimizer.step()
        assert_equal(*map(snapshot, models))
    assert fused.step_count == 5
    gradients = [model.stem.weight.grad for model in models]
    assert gradients[1].dtype == torch.float64
    if not options.get("nesterov"):  # foreach's changes them
        assert torch.equal(*gradients)


def make(net, *args, **options):
    return AsynchronousSGD(net.parameters(), *args, **({"model": net} | options))


BAD = {
    "neither": (lambda m: make(m, model=None), ValueError, "pass model=.* or conv_weights="),
    "both": (lambda m: make(m, conv_weights=[m.stem.weight]), ValueError, "pass model="),
    "no weights": (lambda m: make(m, model=None, conv_weights=[]), ValueError, "conv_weights is empty"),
    "one weight": (
        lambda m: make(m, model=None, conv_weights=m.stem.weight),
        TypeError,
        "conv_weights must be a list of parameters, got Parameter",
    ),
    "a number": (lambda m: make(m, model=None, conv_weights=3), TypeError, "conv_weights must be a list .*, got int"),
    "foreign weight": (
        lambda m: make(m, model=None, conv_weights=[m.stem.weight, torch.ones(3, 2)]),
        ValueError,
        r"conv_weights\[1\] is not among",
    ),
    "exclude": (
        lambda m: make(m, model=None, conv_weights=[m.stem.weight], exclude=["up"]),
        ValueError,
        "include and exclude go with model=",
    ),
    "rate": (lambda m: make(m, rate=0.0), ValueError, "rate must be in"),
    "select": (lambda m: make(m, select="x"), ValueError, "select must be"),
    "seed": (lambda m: make(m, seed=2**63), ValueError, "seed must be below 2\\^63"),
    "lr": (lambda m: make(m, -1.0), ValueError, "Invalid learning rate"),
    "nesterov": (lambda m: make(m, nesterov=True), ValueError, "Nesterov momentum requires"),
    "differentiable": (lambda m: make(m, differentiable=True), ValueError, "differentiable=True is not supported"),
    "fused": (lambda m: make(m, fused=True), ValueError, "fused=True is not supported"),
    "complex": (
        lambda m: AsynchronousSGD([*m.parameters(), nn.Parameter(torch.ones(2) + 0j)], model=m),
        TypeError,
        r"params\[11\] must be float32, float64, float16 or bfloat16, got torch.complex64",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call(make_net())


def test_a_group_that_is_refused_is_not_added():
    model = make_net()
    optimizer = make(model)
    with pytest.raises(TypeError, match="complex64"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2) + 0j)]})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))]})
    assert len(optimizer.param_groups) == 2


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_sparse_gradients_change_nothing():
    model = make_net()
    model.words = nn.Embedding(4, 3, sparse=True)
    optimizer = make(model, 0.1)
    backward(model, BATCHES[0])
    model.words(torch.tensor([1])).sum().backward()
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()
    assert_equal(snapshot(model), before)
    assert optimizer.step_count == 0


def test_repr_has_the_rate_and_the_seed():
    model = nn.Conv2d(1, 4, 3)
    shown = repr(AsynchronousSGD(model.parameters(), lr=0.1, model=model, rate=0.25, seed=7))
    assert shown.startswith("AsynchronousSGD (\nParameter Group 0\n")
    assert shown.endswith("\n    rate: 0.25\n    seed: 7\n)")
