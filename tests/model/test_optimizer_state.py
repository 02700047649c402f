"""State of elements that were overwritten: moments, magnitudes, copies of the weight."""

import copy
from collections import defaultdict

import pytest
import torch
from torch import nn, optim
from torch.optim import Optimizer

from weight_evolution import LowRankProjection, WeightEvolution
from weight_evolution.model.optimizer_state import StateUpdate, check_optimizer_state

FIRST, SECOND = "first moment", "second moment"
OPTIMIZERS = {
    "SGD": (lambda p: optim.SGD(p, lr=0.01, momentum=0.9), {"momentum_buffer": FIRST}),
    "Adam": (lambda p: optim.Adam(p, foreach=True), {"exp_avg": FIRST, "exp_avg_sq": SECOND}),
    "Adam capturable": (
        lambda p: optim.Adam(p, lr=torch.tensor(0.01), foreach=False),
        {"exp_avg": FIRST, "exp_avg_sq": SECOND},
    ),
    "AdamW amsgrad": (
        lambda p: optim.AdamW(p, amsgrad=True, fused=False),
        {"exp_avg": FIRST, "exp_avg_sq": SECOND, "max_exp_avg_sq": SECOND},
    ),
    "AdamW fused": (lambda p: optim.AdamW(p, fused=True), {"exp_avg": FIRST, "exp_avg_sq": SECOND}),
    "NAdam": (lambda p: optim.NAdam(p), {"exp_avg": FIRST, "exp_avg_sq": SECOND}),
    "RAdam": (lambda p: optim.RAdam(p), {"exp_avg": FIRST, "exp_avg_sq": SECOND}),
    "Adamax": (lambda p: optim.Adamax(p), {"exp_avg": FIRST, "exp_inf": SECOND}),
    "RMSprop": (
        lambda p: optim.RMSprop(p, momentum=0.5, centered=True),
        {"square_avg": SECOND, "momentum_buffer": FIRST, "grad_avg": FIRST},
    ),
    "Adagrad": (lambda p: optim.Adagrad(p, initial_accumulator_value=0.25), {"sum": SECOND}),
    "Adadelta": (lambda p: optim.Adadelta(p), {"square_avg": SECOND, "acc_delta": SECOND}),
    "Rprop": (lambda p: optim.Rprop(p, lr=0.02), {"prev": FIRST, "step_size": SECOND}),
}
FRESH = {"sum": 0.25, "step_size": 0.02}


def trained(make, dtype=torch.float32, steps=3):
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(6, 3, 3, 3).to(dtype)), nn.Parameter(torch.randn(5).to(dtype))]
    optimizer = make(parameters)
    for _ in range(steps):
        step(optimizer, parameters)
    return optimizer, parameters


def step(optimizer, parameters):
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, dtype=torch.float32).to(parameter.dtype)
    optimizer.step()


def overwrite(optimizer, parameters, choice, rows=2):
    """Two rows of each parameter; the state before, and which elements changed."""
    update = StateUpdate(check_optimizer_state(optimizer, choice), parameters)
    before, changed = copy.deepcopy(optimizer.state), []
    with torch.no_grad():
        for parameter in parameters:
            old = parameter.clone()
            parameter[:rows] = parameter[:rows] * 3 + 1
            changed.append(parameter != old)
    update.apply_()
    return list(before.values()), changed


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("choice", ["keep", "fill", "reset"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_state_of_torchs_optimizers(name, choice, dtype):
    make, kinds = OPTIMIZERS[name]
    optimizer, parameters = trained(make, dtype)
    states, masks = overwrite(optimizer, parameters, choice)
    for parameter, old, changed in zip(parameters, states, masks, strict=True):
        for key, value in optimizer.state[parameter].items():
            before = old[key]
            if key not in kinds or choice == "keep":
                assert torch.equal(torch.as_tensor(value), torch.as_tensor(before)), key
                continue
            if choice == "reset":
                expected = torch.tensor(FRESH.get(key, 0.0))
            else:
                expected = before[~changed].float().mean() if kinds[key] == SECOND else torch.tensor(0.0)
            torch.testing.assert_close(value[changed], expected.to(value).expand(int(changed.sum())))
            assert torch.equal(value[~changed], before[~changed]), key
        assert kinds.keys() <= optimizer.state[parameter].keys()


@pytest.mark.skipif(not hasattr(optim, "Muon"), reason="this torch has no Muon")
def test_muon():
    weight = nn.Parameter(torch.randn(6, 4))
    optimizer = optim.Muon([weight], lr=0.01)
    step(optimizer, [weight])
    (before,), (changed,) = overwrite(optimizer, [weight], "fill")
    buffer = optimizer.state[weight]["momentum_buffer"]
    assert torch.equal(buffer[changed], torch.zeros(int(changed.sum())))
    assert torch.equal(buffer[~changed], before["momentum_buffer"][~changed])


@pytest.mark.parametrize("amsgrad", [False, True])
def test_the_next_steps_of_filled_elements_are_of_the_size_of_others(amsgrad):
    """With the moments zeroed they are several times as large: the step counter is the tensor's."""
    largest = {}
    for choice in ("reset", "fill"):
        optimizer, parameters = trained(lambda p: optim.Adam(p, lr=0.01, amsgrad=amsgrad), steps=200)
        _, masks = overwrite(optimizer, parameters, choice)
        moves = []
        for _ in range(20):
            before = parameters[0].detach().clone()
            step(optimizer, parameters)
            moves.append((parameters[0].detach() - before)[masks[0]].abs().max() / 0.01)
        largest[choice] = float(max(moves))
    assert largest["reset"] > 2.4  # 2.50 learning rates
    assert largest["fill"] < 0.9  # 0.79; of the other elements 0.73


def test_all_elements_replaced_and_values_that_are_not_finite():
    optimizer, parameters = trained(OPTIMIZERS["Adam"][0])
    (before, _), _ = overwrite(optimizer, parameters, "fill", rows=6)
    mean = before["exp_avg_sq"].mean()
    torch.testing.assert_close(optimizer.state[parameters[0]]["exp_avg_sq"], mean.expand(6, 3, 3, 3))
    optimizer.state[parameters[1]]["exp_avg_sq"][4] = float("inf")
    overwrite(optimizer, parameters, "fill")
    assert optimizer.state[parameters[1]]["exp_avg_sq"][:2].isfinite().all()


class Copying(Optimizer):
    """Keeps copies of the weights as others do: float32 masters, slow weights, schedule-free's z, and moments."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.01})

    @torch.no_grad()
    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            if not state:
                state["fp32"] = parameter.float()
                state["slow"], state["z"] = parameter.clone(), parameter.clone()
                state["speed"], state["size"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
                state["codes"] = torch.full(parameter.shape, 7, dtype=torch.uint8)
            state["speed"].mul_(0.9).add_(parameter.grad)
            state["size"].mul_(0.9).add_(parameter.grad.square())
            state["fp32"].add_(state["speed"].float(), alpha=-0.01)
            parameter.copy_(state["fp32"])
            state["slow"].lerp_(parameter, 0.5)
            state["z"].add_(parameter.grad, alpha=-0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("choice", ["keep", "fill", "reset"])
def test_copies_of_the_weight_follow_it(choice, dtype):
    optimizer, parameters = trained(Copying, dtype)
    states, masks = overwrite(optimizer, parameters, choice)
    for parameter, old, changed in zip(parameters, states, masks, strict=True):
        state = optimizer.state[parameter]
        for key in ("fp32", "slow", "z"):
            assert torch.equal(state[key][changed], parameter[changed].to(state[key].dtype)), key
            assert torch.equal(state[key][~changed], old[key][~changed]), key
        assert (state["codes"] == 7).all()
        size = {"keep": old["size"][changed], "reset": torch.zeros(())}.get(
            choice, old["size"][~changed].float().mean()
        )
        torch.testing.assert_close(state["size"][changed], size.to(dtype).expand(int(changed.sum())))
        speed = old["speed"][changed] if choice == "keep" else torch.zeros(int(changed.sum()), dtype=dtype)
        assert torch.equal(state["speed"][changed], speed)
    written = [parameter.detach().clone() for parameter in parameters]
    step(optimizer, parameters)
    for parameter, old in zip(parameters, written, strict=True):
        assert (parameter - old).abs().max() < 0.2  # the next step goes on from there


def test_weights_of_zeros_have_no_copies():
    """Their moments are zeros, too, which is no likeness."""
    weight = nn.Parameter(torch.zeros(4, 3))
    optimizer = Copying([weight])
    weight.grad = torch.zeros(4, 3)
    optimizer.step()
    overwrite(optimizer, [weight], "keep")
    assert (optimizer.state[weight]["speed"] == 0).all()


def test_state_of_an_optimizer_within_an_optimizer():
    class Lookahead(Optimizer):
        def __init__(self, base):
            self.base, self.param_groups, self.state = base, base.param_groups, defaultdict(dict)
            for parameter in base.param_groups[0]["params"]:
                self.state[parameter]["slow_buffer"] = parameter.detach().clone()

        def step(self, closure=None):
            self.base.step()

    optimizer, parameters = trained(lambda p: Lookahead(optim.Adam(p)))
    _, masks = overwrite(optimizer, parameters, "fill")
    for parameter, changed in zip(parameters, masks, strict=True):
        assert torch.equal(optimizer.state[parameter]["slow_buffer"][changed], parameter[changed])
        assert (optimizer.base.state[parameter]["exp_avg"][changed] == 0).all()


@pytest.mark.parametrize("choice", ["keep", "fill", "reset"])
@pytest.mark.parametrize("method", [WeightEvolution, LowRankProjection])
def test_an_optimizer_of_another_model_is_refused(method, choice):
    model, other = (nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)) for _ in range(2))
    optimizer = optim.Adam(other.parameters())
    with pytest.raises(ValueError, match=r"optimizer \(Adam\) has none of the model's weights"):
        method(model, optimizer=optimizer, optimizer_state=choice)
    optimizer = optim.Adam(model.parameters())
    used = method(model, optimizer=optimizer, optimizer_state=choice)
    used.step()
    del optimizer.param_groups[0]
    optimizer.add_param_group({"params": other.parameters()})
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"optimizer \(Adam\) has none of the model's weights"):
        used.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_bad_arguments():
    with pytest.raises(ValueError, match='optimizer_state must be "keep", "fill" or "reset", got \'forget\''):
        check_optimizer_state(None, "forget")
    for choice in ("fill", "reset"):
        with pytest.raises(ValueError, match=f'optimizer_state="{choice}" needs optimizer='):
            check_optimizer_state(None, choice)
        with pytest.raises(TypeError, match=r"optimizer must be a torch.optim.Optimizer, got Linear"):
            check_optimizer_state(nn.Linear(1, 1), choice)
    assert check_optimizer_state(None, "keep") is None
