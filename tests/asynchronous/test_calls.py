"""Optimizers that call each other, that hide their steps, and steps that train nothing."""

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import optim
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.optim import Optimizer

from tests.asynchronous.twins import BATCHES, CONVS, backward, make_net, snapshot
from weight_evolution import AsynchronousSGD, AsynchronousUpdate


def decaying():
    """A class whose step changes weights before and after that of its base class, and the base class."""

    class Base(optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    class Decaying(Base):
        def step(self, closure=None):
            self.decay()
            loss = super().step(closure)
            self.decay()
            return loss

        @torch.no_grad()
        def decay(self):
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.mul_(0.9)

    return Decaying, Base


class Failing(optim.SGD):
    """Survives its base class's failure and goes on."""

    def step(self, closure=None):
        try:
            super().step(closure)
        except ZeroDivisionError:
            with torch.no_grad():
                for group in self.param_groups:
                    for parameter in group["params"]:
                        parameter.mul_(0.5)


class Lookahead(Optimizer):
    """As timm's and others: it does not call Optimizer.__init__."""

    def __init__(self, base):
        self.base = base
        self.param_groups, self.state = base.param_groups, base.state

    def step(self, closure=None):
        return self.base.step(closure)


class LookaheadWithHooks(Lookahead):
    """Has the attributes that torch asks for, and never runs the hooks in them."""

    def __init__(self, base):
        super().__init__(base)
        self._optimizer_step_pre_hooks, self._optimizer_step_post_hooks = {}, {}


class Delegate(Optimizer):
    """Its step is its base's, whose hooks run instead of its own."""

    def __init__(self, base):
        super().__init__(base.param_groups, base.defaults)
        self.step = base.step


class SAM(Optimizer):
    """Steps by halves, as most programs call it."""

    def __init__(self, base):
        super().__init__(base.param_groups, base.defaults)
        self.base = base
        self.param_groups = base.param_groups

    @torch.no_grad()
    def first_step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["old"] = parameter.clone()
                parameter.add_(parameter.grad, alpha=0.05)

    @torch.no_grad()
    def second_step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.copy_(self.state[parameter]["old"])
        self.base.step()

    @torch.no_grad()
    def step(self, closure=None):
        self.first_step()
        with torch.enable_grad():
            closure()
        self.second_step()


def moved(model, before, name="stem.weight"):
    return (dict(model.named_parameters())[name] != before[name]).flatten(1).any(1).tolist()


def check_masked_steps(model, optimizer, update, batches=BATCHES):
    for batch in batches:
        optimizer.zero_grad()
        backward(model, batch)
        before, selection, count = snapshot(model), update.selection(), update.step_count
        optimizer.step()
        for name, mask in selection.items():
            new, old = (x[name].movedim(CONVS[name][1], 0) for x in (snapshot(model), before))
            assert torch.equal(new[~mask], old[~mask]), name
            assert (new[mask] != old[mask]).flatten(1).any(1).all(), name
        assert update.step_count == count + 1


@pytest.mark.parametrize("base_made_before", [False, True])
def test_a_step_within_a_step_is_masked_as_a_whole(base_made_before):
    """Whether torch runs hooks in super().step() depends on what was constructed before."""
    kind, base = decaying()
    if base_made_before:
        base([torch.zeros(1, requires_grad=True)], lr=0.1)
    model = make_net()
    optimizer = kind(model.parameters(), lr=0.1)
    check_masked_steps(model, optimizer, AsynchronousUpdate(optimizer, model))


def test_a_step_within_a_step_that_fails():
    """The outer one survives and is masked; one that fails as a whole is left as it is, and the next is masked."""
    model = make_net()
    optimizer = Failing(model.parameters(), lr=0.1, weight_decay=0.1)
    update = AsynchronousUpdate(optimizer, model)
    before, selection = snapshot(model), update.selection()

    def fail(error):
        raise error

    optimizer.step(lambda: fail(ZeroDivisionError()))
    assert torch.equal(model.fc.weight, before["fc.weight"] * 0.5)
    assert moved(model, before) == selection["stem.weight"].tolist()
    assert update.step_count == 1
    with pytest.raises(KeyError):
        optimizer.step(lambda: fail(KeyError()))
    assert update.step_count == 1
    check_masked_steps(model, optimizer, update)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Lookahead, "its class does not call Optimizer.__init__"),
        (LookaheadWithHooks, "its class does not call Optimizer.__init__"),
        (Delegate, "it is that of another SGD"),
    ],
)
def test_an_optimizer_that_runs_no_hooks_is_refused(kind, reason):
    model = make_net()
    base = optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    with pytest.raises(TypeError, match=rf"optimizer is a {kind.__name__} whose step\(\) runs no step hooks.*{reason}"):
        AsynchronousUpdate(kind(base), model)
    check_masked_steps(model, base, AsynchronousUpdate(base, model))


def test_half_steps_are_refused_before_the_weights_move():
    model = make_net()
    sam = SAM(optim.SGD(model.parameters(), lr=0.1))
    update = AsynchronousUpdate(sam, model)
    backward(model, BATCHES[0])
    before = snapshot(model)
    sam.first_step()
    with pytest.raises(RuntimeError, match=r"the SGD in it steps outside of its step\(\).*make one of that SGD"):
        sam.second_step()
    assert all(torch.equal(value, before[name]) for name, value in snapshot(model).items())

    selection = update.selection()
    sam.step(lambda: backward(model, BATCHES[0]))
    assert moved(model, before) == selection["stem.weight"].tolist()

    update.detach()
    update, before = AsynchronousUpdate(sam.base, model), snapshot(model)
    selection = update.selection()
    sam.first_step()
    sam.second_step()
    assert moved(model, before) == selection["stem.weight"].tolist()


def test_one_update_for_an_optimizer_and_those_in_it():
    model = make_net()
    sam = SAM(optim.SGD(model.parameters(), lr=0.1))
    update = AsynchronousUpdate(sam.base, model)
    with pytest.raises(
        ValueError, match=r"or one that it holds, has an AsynchronousUpdate already; call its detach\(\)"
    ):
        AsynchronousUpdate(sam, model)
    update.detach()
    AsynchronousUpdate(sam, model)
    with pytest.raises(ValueError, match="is an AsynchronousSGD or holds one"):
        AsynchronousUpdate(SAM(AsynchronousSGD(model.parameters(), model=model)), model)


def test_a_dummy_step_of_an_optimizer_that_holds_another():
    class Around(Optimizer):
        def __init__(self, base):
            super().__init__(base.param_groups, base.defaults)
            self.base, self.param_groups, self.state = base, base.param_groups, base.state

        def step(self, closure=None):
            self.base.step()

    model = make_net()
    optimizer = Around(optim.Adam(model.parameters()))
    update = AsynchronousUpdate(optimizer, model)
    get_optimizer_state_dict(model, optimizer)
    assert update.step_count == 0
    check_masked_steps(model, optimizer, update, BATCHES[:1])


def test_an_optimizer_of_other_parameters_may_step_whenever_it_likes():
    model, other = make_net(), make_net(1)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    optimizer.rival = optim.SGD(other.parameters(), lr=0.1)
    AsynchronousUpdate(optimizer, model)
    optimizer.rival.step()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled", "ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("kind", ["hook", "sgd", "sgd without state"])
def test_distributed_checkpoints_resume_exactly(tmp_path, kind):
    """torch.distributed.checkpoint makes a dummy step before it loads, and keeps only state and groups."""

    def start(seed):
        model = make_net(seed)
        if kind == "hook":
            optimizer = optim.Adam(model.parameters(), lr=0.01)
            return model, optimizer, AsynchronousUpdate(optimizer, model, rate=0.3, seed=seed)
        momentum = 0.0 if kind == "sgd without state" else 0.9
        optimizer = AsynchronousSGD(model.parameters(), lr=0.1, momentum=momentum, model=model, rate=0.3, seed=seed)
        return model, optimizer, optimizer

    def states(model, optimizer, update):
        state = {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer)}
        return state | ({"update": update.state_dict()} if kind == "hook" else {})

    def train(model, optimizer, batches):
        for batch in batches:
            optimizer.zero_grad()
            backward(model, batch)
            optimizer.step()
        optimizer.zero_grad()
        return snapshot(model)

    model, optimizer, update = start(5)
    train(model, optimizer, BATCHES[:2])
    dcp.save(states(model, optimizer, update), checkpoint_id=tmp_path, no_dist=True)
    expected = train(model, optimizer, BATCHES[2:])

    again, second, resumed = start(7)
    state = states(again, second, resumed)
    assert resumed.step_count == 0
    dcp.load(state, checkpoint_id=tmp_path, no_dist=True)
    again.load_state_dict(state["model"])
    if kind == "hook":
        second.state.clear()
        resumed.load_state_dict(state["update"])  # before the optimizer
    set_optimizer_state_dict(again, second, state["optimizer"])
    assert resumed.step_count == 2
    found = train(again, second, BATCHES[2:])
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_a_first_step_at_rate_zero_counts():
    """Warm-up from 0: the gradients are not 0."""
    model = make_net()
    optimizer = optim.SGD(model.parameters(), lr=0.0)
    update = AsynchronousUpdate(optimizer, model)
    fused = AsynchronousSGD(model.parameters(), lr=0.0, model=model)
    backward(model, BATCHES[0])
    optimizer.step()
    fused.step()
    optimizer.step(lambda: backward(model, BATCHES[0]))
    assert update.step_count == 2
    assert fused.step_count == 1
