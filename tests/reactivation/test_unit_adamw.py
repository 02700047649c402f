"""UnitAdamW: AdamW's bits while nothing was reset, a fresh optimizer's from a reset on, AdamW's state."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.optim import Adam, AdamW

import we_kernels as wk
from tests.asynchronous.twins import BATCHES, backward, make_net, snapshot
from weight_evolution import UnitAdamW
from weight_evolution.model.optimizer_state import OptimizerState, StateUpdate

OPTIONS = {
    "plain": {},
    "decay": {"weight_decay": 0.1, "betas": (0.8, 0.99), "eps": 1e-6},
    "amsgrad": {"amsgrad": True},
    "maximize": {"maximize": True, "amsgrad": True},
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


def assert_same_state(ours, theirs):
    assert ours["state"].keys() == theirs["state"].keys()
    for key, state in ours["state"].items():
        assert_equal(state, theirs["state"][key])
        assert all(value.dtype == theirs["state"][key][name].dtype for name, value in state.items())
    for ours_, theirs_ in zip(ours["param_groups"], theirs["param_groups"], strict=True):
        assert ours_ | {"foreach": None} == theirs_ | {"foreach": None}


@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_is_torchs_bit_for_bit(name, dtype, adam):
    models = [make_net().to(dtype) for _ in range(2)]
    options = {"lr": 0.1, "weight_decay": 0.02} | OPTIONS[name]
    optimizers = [
        (Adam if adam else AdamW)(models[0].parameters(), **options, foreach=True),
        UnitAdamW(models[1].parameters(), **options, decoupled_weight_decay=not adam),
    ]
    batches = [(images.to(dtype), targets) for images, targets in BATCHES]
    found = [train(model, optimizer, batches) for model, optimizer in zip(models, optimizers, strict=True)]
    assert_equal(*found)
    assert_same_state(*(optimizer.state_dict() for optimizer in reversed(optimizers)))


def test_the_defaults_are_adamws():
    models = [make_net() for _ in range(2)]
    optimizers = [AdamW(models[0].parameters()), UnitAdamW(models[1].parameters())]
    assert_same_state(*(optimizer.state_dict() for optimizer in reversed(optimizers)))
    assert list(optimizers[0].param_groups[0]) == list(optimizers[1].param_groups[0])


def test_capturable_has_its_counters_on_the_device():
    models = [make_net() for _ in range(2)]
    host = UnitAdamW(models[0].parameters(), lr=0.01)
    device = UnitAdamW(models[1].parameters(), lr=torch.tensor(0.01, dtype=torch.float64), capturable=True)
    assert_equal(train(models[0], host), train(models[1], device))
    assert device.state[models[1].fc.weight]["step"].item() == len(BATCHES)


# Resets


def gradients(parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


SHAPES = {"convolution": ((6, 4, 3, 3), 1), "groups": ((6, 4, 3), 3), "linear": ((5, 7), 1), "vector": ((9,), 1)}
FRESH = {"betas": (0.9, 0.999), "weight_decay": 0.01, "lr": 0.01}


@pytest.mark.sampled(9)
@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"decoupled_weight_decay": False}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_a_reset_element_moves_as_in_a_fresh_optimizer(name, dtype, options):
    """For 300 steps, bit for bit on a CPU; all others as if nothing had happened, bit for bit, too."""
    shape, groups = SHAPES[name]
    d1 = shape[1] if len(shape) > 1 else 1
    parameter = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(5)).to(dtype))
    optimizer = UnitAdamW([parameter], **FRESH | options)
    for step in range(40):
        gradients([parameter], step)
        optimizer.step()
    rows, columns = torch.zeros(shape[0], dtype=torch.bool), torch.zeros(groups * d1, dtype=torch.bool)
    rows[[1, -1]] = True
    columns[-1] = True
    twin = nn.Parameter(parameter.detach().clone())
    unchanged = UnitAdamW([twin])
    unchanged.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    copied = nn.Parameter(parameter.detach().clone())
    fresh = UnitAdamW([copied], **FRESH | options)
    before = parameter.detach().clone()
    optimizer.reset_units_(parameter, rows, None if name == "vector" else columns, groups)
    assert torch.equal(parameter, before)
    new = rows.view(-1, *[1] * (len(shape) - 1)).expand(shape).clone()
    if name != "vector":
        of_group = columns.view(groups, 1, d1).expand(groups, shape[0] // groups, d1).reshape(shape[0], d1)
        new |= of_group.view(shape[0], d1, *[1] * (len(shape) - 2))
    assert 0 < int(new.sum()) < new.numel()
    for step in range(300):
        for each, stepped in ((parameter, optimizer), (twin, unchanged), (copied, fresh)):
            gradients([each], 1000 + step)
            stepped.step()
        assert torch.equal(parameter[new], copied[new]), step
        assert torch.equal(parameter[~new], twin[~new]), step
    assert optimizer.state[parameter]["row_reset"].tolist() == (40.0 * rows).tolist()


def test_a_later_reset_of_a_row_and_an_earlier_one_of_a_column():
    parameter = nn.Parameter(torch.ones(3, 2))
    optimizer = UnitAdamW([parameter], lr=0.5, weight_decay=0)
    rows, columns = torch.tensor([True, False, False]), torch.tensor([False, True])
    for step in range(6):
        if step == 2:
            optimizer.reset_units_(parameter, columns=columns)
        if step == 4:
            optimizer.reset_units_(parameter, rows)
        parameter.grad = torch.full_like(parameter, 2.0)
        optimizer.step()
    state = optimizer.state[parameter]
    assert state["row_reset"].tolist() == [4, 0, 0]
    assert state["column_reset"].tolist() == [0, 2]
    # Equal gradients and corrections of the right age: every step is one learning rate.
    torch.testing.assert_close(parameter, torch.full_like(parameter, 1 - 6 * 0.5))
    age = torch.tensor([[2.0, 2.0], [6.0, 4.0], [6.0, 4.0]])
    torch.testing.assert_close(state["exp_avg"], 2 * (1 - 0.9**age))


def test_moments_that_are_not_finite_are_reset():
    parameter = nn.Parameter(torch.ones(3, 2))
    optimizer = UnitAdamW([parameter], lr=0.5, weight_decay=0, amsgrad=True)
    parameter.grad = torch.tensor([[math.nan, 1.0], [1.0, 1.0], [1.0, 1.0]])
    optimizer.step()
    optimizer.reset_units_(parameter, torch.tensor([True, False, False]))
    with torch.no_grad():
        parameter[0] = 1
    parameter.grad = torch.ones(3, 2)
    optimizer.step()
    assert parameter.isfinite().all()


def test_before_the_first_step_there_is_nothing_to_reset():
    parameter = nn.Parameter(torch.ones(3, 2))
    optimizer = UnitAdamW([parameter])
    optimizer.reset_units_(parameter, torch.ones(3, dtype=torch.bool))
    assert optimizer.unit_resets(parameter) is None
    assert not optimizer.state


def test_vectors_for_a_kernel_of_its_own():
    parameter = nn.Parameter(torch.ones(6, 4, 3))
    optimizer = UnitAdamW([parameter])
    gradients([parameter], 1)
    optimizer.step()
    assert "row_reset" not in optimizer.state[parameter]
    resets = optimizer.unit_resets(parameter, groups=3)
    assert [(x.shape, x.dtype) for x in resets] == [((6,), torch.float32), ((12,), torch.float32), ((), torch.float32)]
    again = optimizer.unit_resets(parameter, groups=3)
    assert all(a is b for a, b in zip(resets, again, strict=True))
    before = copy.deepcopy((parameter, optimizer))
    for each, stepped in ((parameter, optimizer), before):  # vectors of zeros change no bit
        if each is not parameter:
            del stepped.state[each]["row_reset"], stepped.state[each]["column_reset"]
        gradients([each], 2)
        stepped.step()
    assert torch.equal(parameter, before[0])


def test_other_methods_leave_the_vectors_alone():
    """Of a parameter of one dimension they are as long as the parameter."""
    parameter = nn.Parameter(torch.ones(4))
    optimizer = UnitAdamW([parameter])
    gradients([parameter], 1)
    optimizer.step()
    optimizer.reset_units_(parameter, torch.tensor([True, True, False, False]))
    update = StateUpdate(OptimizerState(optimizer, "fill"), [parameter])
    with torch.no_grad():
        parameter[0] = 7
    update.apply_()
    assert optimizer.state[parameter]["row_reset"].tolist() == [1, 1, 0, 0]


# State


def trained(dtype=torch.float32, steps=3, **options):
    model = make_net().to(dtype)
    optimizer = UnitAdamW(model.parameters(), lr=0.01, **options)
    batches = [(BATCHES[i % 4][0].to(dtype), BATCHES[i % 4][1]) for i in range(steps)]
    train(model, optimizer, batches)
    optimizer.reset_units_(model.stem.weight, torch.arange(8) < 3)
    optimizer.reset_units_(model.depthwise.weight, None, torch.arange(8) < 3, groups=8)
    train(model, optimizer, batches[:1])
    return model, optimizer, batches


def test_state_resumes_exactly(tmp_path):
    model, optimizer, batches = trained(amsgrad=True)
    torch.save([model.state_dict(), optimizer.state_dict()], tmp_path / "state.pt")
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    expected = train(model, optimizer, batches)
    again = make_net(7)
    again.load_state_dict(weights)
    resumed = UnitAdamW(again.parameters(), lr=1.0)
    resumed.load_state_dict(state)
    assert_equal(train(again, resumed, batches), expected)


def test_bfloat16_does_not_round_the_vectors():
    """It counts to 256; PyTorch casts state to the parameter's dtype."""
    parameter = nn.Parameter(torch.ones(4, 3).bfloat16())
    optimizer = UnitAdamW([parameter], lr=1e-4)
    for _ in range(261):
        gradients([parameter], 3)
        optimizer.step()
    optimizer.reset_units_(parameter, torch.tensor([True, False, False, True]), torch.tensor([True, False, False]))
    other = nn.Parameter(parameter.detach().clone())
    resumed = UnitAdamW([other])

    def replace(_, state):
        """Another state than was passed: hooks of others run before the vectors are read."""
        (number,) = state["state"]
        return state | {"state": {number: {**state["state"][number]}}}

    resumed.register_load_state_dict_pre_hook(replace)
    resumed.load_state_dict(optimizer.state_dict())
    assert len(resumed._optimizer_load_state_dict_pre_hooks) == 1
    state = resumed.state[other]
    assert state["row_reset"].tolist() == [261, 0, 0, 261]
    assert state["column_reset"].tolist() == [261, 0, 0]
    assert state["row_reset"].dtype == torch.float32
    assert state["exp_avg"].dtype == torch.bfloat16
    for _ in range(3):
        for each, stepped in ((parameter, optimizer), (other, resumed)):
            gradients([each], 9)
            stepped.step()
    assert torch.equal(parameter, other)


@pytest.mark.parametrize("kind", [Adam, AdamW])
@pytest.mark.parametrize("fused", [None, True])
def test_loads_torchs_state_and_is_loaded(kind, fused):
    model, twin = make_net(), make_net()
    theirs = kind(model.parameters(), lr=0.05, weight_decay=0.1, fused=fused)
    train(model, theirs)
    twin.load_state_dict(model.state_dict())
    ours = UnitAdamW(twin.parameters())
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    assert ours.param_groups[0]["decoupled_weight_decay"] == (kind is AdamW)
    assert ours.param_groups[0]["lr"] == 0.05
    assert ours.param_groups[0]["fused"] is None
    plain = kind(model.parameters())
    plain.load_state_dict(copy.deepcopy(theirs.state_dict()))
    for group in plain.param_groups:
        group.update(foreach=True, fused=None)
    assert_equal(train(model, plain), train(twin, ours))
    ours.reset_units_(twin.stem.weight, torch.arange(8) < 3)
    back = kind(model.parameters())
    back.load_state_dict(ours.state_dict())
    assert back.state[model.stem.weight]["step"].item() == 2 * len(BATCHES)
    train(model, back)


def test_state_of_an_adamw_that_did_not_say_what_it_was():
    """PyTorch's before 2.6."""
    model = make_net()
    optimizer = AdamW(model.parameters(), weight_decay=0.1)
    train(model, optimizer)
    state = optimizer.state_dict()
    del state["param_groups"][0]["decoupled_weight_decay"]
    ours = UnitAdamW(model.parameters())
    ours.load_state_dict(state)
    assert ours.param_groups[0]["decoupled_weight_decay"] is True


def test_a_state_that_does_not_fit_changes_nothing():
    _, optimizer, _ = trained()
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match="parameter group"):
        optimizer.load_state_dict(before | {"param_groups": []})
    assert_same_state(optimizer.state_dict(), before)
    assert not optimizer._optimizer_load_state_dict_pre_hooks


@pytest.mark.parametrize("how", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["copy", "pickle"])
def test_copies_step_alone(how):
    model, optimizer, batches = trained()
    again, second = how((model, optimizer))
    assert_equal(train(model, optimizer, batches), train(again, second, batches))


# In training loops


def test_groups_closures_schedulers_and_hooks():
    models, seen = [make_net() for _ in range(2)], []
    for model, kind in zip(models, (AdamW, UnitAdamW), strict=True):
        others = [p for n, p in model.named_parameters() if not n.startswith("fc.")]
        groups = [{"params": model.fc.parameters(), "weight_decay": 0.3, "betas": (0.5, 0.9)}, {"params": others}]
        options = {"foreach": True} if kind is AdamW else {}
        optimizer = kind(groups, lr=0.1, **options)
        extra = nn.Parameter(torch.ones(3))
        optimizer.add_param_group({"params": [extra], "lr": 0.5})
        optimizer.register_step_post_hook(lambda optimizer, *rest: seen.append(type(optimizer)))
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        for batch in BATCHES:
            extra.grad = torch.ones(3)

            def closure(model=model, optimizer=optimizer, batch=batch):
                optimizer.zero_grad(set_to_none=False)
                return backward(model, batch)

            assert optimizer.step(closure).isfinite()
            schedule.step()
    assert_equal(*map(snapshot, models))
    assert seen == [AdamW] * 4 + [UnitAdamW] * 4


def test_parameters_without_gradients_have_their_own_counters():
    models = [make_net() for _ in range(2)]
    optimizers = [AdamW(models[0].parameters(), foreach=True), UnitAdamW(models[1].parameters())]
    models[0].grouped.weight.requires_grad_(False)
    models[1].grouped.weight.requires_grad_(False)
    for step in range(3):
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            backward(model, BATCHES[step])
            if step != 1:
                model.stem.weight.grad = None
            optimizer.step()
    assert_equal(*map(snapshot, models))
    assert models[1].grouped.weight not in optimizers[1].state
    assert optimizers[1].state[models[1].stem.weight]["step"] == 1


def test_scalars_and_nothing():
    params = [nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.empty(0, 3)), nn.Parameter(torch.ones(2).half())]
    optimizer = UnitAdamW(params, lr=0.25, weight_decay=0)
    for step in range(2):
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
        if step == 0:
            optimizer.reset_units_(params[0], torch.tensor([True]))
            optimizer.reset_units_(params[1], torch.empty(0, dtype=torch.bool), torch.ones(3, dtype=torch.bool))
    assert params[0].item() == pytest.approx(0.5)
    assert params[2].tolist() == [0.5, 0.5]
    assert optimizer.state[params[1]]["step"] == 2


def test_a_skipped_step_counts_nothing():
    model = make_net()
    optimizer = UnitAdamW(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    before = snapshot(model)
    scaler.scale(backward(model, BATCHES[0]))
    model.fc.weight.grad[0] = float("nan")
    scaler.step(optimizer)
    scaler.update()
    assert not optimizer.state
    assert_equal(snapshot(model), before)


def test_gradients_are_unscaled():
    models = [make_net() for _ in range(2)]
    for model, kind in zip(models, (AdamW, UnitAdamW), strict=True):
        optimizer = kind(model.parameters(), lr=0.1, **({"foreach": True} if kind is AdamW else {}))
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        images, targets = BATCHES[0]
        scaler.scale(nn.functional.cross_entropy(model(images), targets)).backward()
        scaler.step(optimizer)
        scaler.update()
    assert_equal(*map(snapshot, models))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own imports
def test_a_compiled_model_and_a_compiled_step():
    models = [make_net() for _ in range(3)]
    optimizers = [UnitAdamW(model.parameters(), lr=0.01) for model in models]
    compiled = torch.compile(models[1], backend="eager")
    step = torch.compile(optimizers[2].step, backend="eager")
    for batch in BATCHES:
        for run in (models[0], compiled, models[2]):
            backward(run, batch)
        optimizers[0].step()
        optimizers[1].step()
        step()
        for optimizer in optimizers:
            optimizer.zero_grad()
    assert_equal(snapshot(models[0]), snapshot(models[1]))
    assert_equal(snapshot(models[0]), snapshot(models[2]))


# What is refused


def make(params=None, **options):
    return UnitAdamW([nn.Parameter(torch.ones(2, 3))] if params is None else params, **options)


BAD = {
    "lr": (lambda: make(lr=-1.0), ValueError, "Invalid learning rate"),
    "eps": (lambda: make(eps=-1.0), ValueError, "Invalid epsilon"),
    "beta": (lambda: make(betas=(0.9, 1.0)), ValueError, "Invalid beta parameter at index 1"),
    "betas": (
        lambda: make(betas=(torch.tensor(0.9), torch.tensor(0.99))),
        TypeError,
        "betas must be numbers, not tensors",
    ),
    "complex": (
        lambda: make([nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2) + 0j)]),
        TypeError,
        r"params\[1\] must be float32, float64, float16 or bfloat16, got torch.complex64",
    ),
    "six dimensions": (
        lambda: make([nn.Parameter(torch.ones(1, 1, 1, 1, 1, 1))]),
        TypeError,
        r"params\[0\] must be a dense tensor of at most 5",
    ),
    "differentiable": (
        lambda: make([{"params": [nn.Parameter(torch.ones(2))], "differentiable": True}]),
        ValueError,
        "differentiable=True is not supported",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()


def test_a_group_that_is_refused_is_not_added():
    optimizer = make()
    with pytest.raises(TypeError, match="complex64"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2) + 0j)]})
    assert len(optimizer.param_groups) == 1


THREE = torch.ones(3, dtype=torch.bool)
BAD_RESETS = {
    "type": (lambda o, p: o.reset_units_(3), TypeError, "parameter must be a tensor, got int"),
    "foreign": (
        lambda o, p: o.reset_units_(torch.ones(4, 3)),
        ValueError,
        r"parameter, of shape \(4, 3\), is not among the optimizer's",
    ),
    "rows": (lambda o, p: o.reset_units_(p, THREE), ValueError, r"rows must have shape \(4,\), got \(3,\)"),
    "rows dtype": (lambda o, p: o.reset_units_(p, torch.ones(4)), TypeError, "rows must be torch.bool"),
    "columns": (lambda o, p: o.reset_units_(p, None, THREE, 2), ValueError, r"columns must have shape \(6,\)"),
    "columns device": (lambda o, p: o.reset_units_(p, None, THREE.to("meta")), ValueError, "columns must be on cpu"),
    "groups": (lambda o, p: o.reset_units_(p, groups=3), ValueError, "groups must be a positive divisor of 4"),
    "groups type": (lambda o, p: o.unit_resets(p, 1.0), TypeError, "groups must be an integer, got float"),
    "other groups": (
        lambda o, p: (o.unit_resets(p, 2), o.reset_units_(p, None, THREE)),
        ValueError,
        "groups must be 2, as in earlier resets of the parameter, got 1",
    ),
}


@pytest.mark.parametrize("name", BAD_RESETS)
def test_bad_resets(name):
    call, error, message = BAD_RESETS[name]
    parameter = nn.Parameter(torch.ones(4, 3))
    optimizer = UnitAdamW([parameter])
    gradients([parameter], 1)
    optimizer.step()
    before = optimizer.state[parameter]["exp_avg"].clone()
    with pytest.raises(error, match=message):
        call(optimizer, parameter)
    assert torch.equal(optimizer.state[parameter]["exp_avg"], before)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_sparse_gradients_change_nothing():
    model = make_net()
    model.words = nn.Embedding(4, 3, sparse=True)
    groups = [{"params": make_net().parameters()}, {"params": model.parameters()}]
    optimizer = UnitAdamW(groups)
    backward(model, BATCHES[0])
    model.words(torch.tensor([1])).sum().backward()
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()
    assert_equal(snapshot(model), before)
    assert not optimizer.state


def test_a_model_that_was_cast_is_named_before_anything_moves():
    model = make_net()
    optimizer = UnitAdamW(model.parameters())
    train(model, optimizer, BATCHES[:1])
    model.fc.double()
    gradients(model.parameters(), 2)
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"state of a parameter of shape \(5, 144\) is torch.float32 on cpu"):
        optimizer.step()
    assert_equal(snapshot(model), before)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.step()
    model.fc.weight.data = model.fc.weight.data.float()
    with pytest.raises(ValueError, match=r"gradient of a parameter of shape \(5, 144\) is torch.float64"):
        optimizer.step()


def test_a_graph_needs_capturable(monkeypatch):
    model = make_net()
    optimizer = UnitAdamW(model.parameters())
    backward(model, BATCHES[0])
    monkeypatch.setattr(wk, "is_capturing", lambda device: True)
    with pytest.raises(RuntimeError, match="needs capturable=True"):
        optimizer.step()
    assert not optimizer.state


def test_vectors_of_resets_are_kept_from_the_first_step_on():
    """So that a fresh optimizer has what a checkpoint holds; a copy does, too."""
    parameter = nn.Parameter(torch.ones(4, 3))
    optimizer = UnitAdamW([parameter])
    optimizer.keep_resets(parameter, groups=2)
    assert not optimizer.state
    copied = copy.deepcopy(optimizer)
    for one in (optimizer, copied):
        parameter = one.param_groups[0]["params"][0]
        gradients([parameter], 1)
        one.step()
        assert one.state[parameter]["row_reset"].tolist() == [0] * 4
        assert one.state[parameter]["column_reset"].tolist() == [0] * 6
    with pytest.raises(ValueError, match="groups must be 2, as in earlier resets"):
        optimizer.keep_resets(optimizer.param_groups[0]["params"][0])
