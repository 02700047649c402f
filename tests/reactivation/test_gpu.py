"""`UnitReactivation` and `UnitAdamW` on a GPU: the units and weights of the CPU, steps in a CUDA graph."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from tests.gpu import CPU, DEVICE, captured, full_float32, needs_device, needs_gpu  # noqa: F401
from tests.reactivation.test_unit_reactivation import DEAD, IMAGES, sick_net
from tests.waiting import no_waiting
from weight_evolution import UnitAdamW, UnitReactivation

pytestmark = [needs_device, pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("full_float32")]
OPTIMIZERS = {
    "sgd": lambda parameters: SGD(parameters, lr=0.01, momentum=0.9),
    "adamw": lambda parameters: AdamW(parameters, lr=0.01),
    "adamw-fused": lambda parameters: AdamW(parameters, lr=0.01, fused=True),
    "adamw-capturable": lambda parameters: AdamW(parameters, lr=0.01, capturable=DEVICE.type == "cuda"),
    "unit-adamw": lambda parameters: UnitAdamW(parameters, lr=0.01),
    "unit-adamw-capturable": lambda parameters: UnitAdamW(parameters, lr=0.01, capturable=True),
}
LABELS = torch.arange(12) % 3


def set_gradients(model, seed):
    """The same on every device."""
    draws = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=draws).to(parameter.device)


def iterate(model, optimizer, reactivation, number):
    model(IMAGES.to(next(model.parameters()).device))
    set_gradients(model, number)
    optimizer.step()
    return reactivation.step()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 0.0},
        {"threshold": 0.0, "scale": "initial", "optimizer_state": "reset"},
        {"threshold": 0.0, "scale": "donor", "outgoing": "keep"},
        {"importance": "l1", "threshold": 1.0},
        {"replacement_rate": 0.3, "maturity": 0},
        {"replacement_rate": 0.3, "maturity": 0, "utility": "adaptation", "scale": "donor"},
    ],
    ids=str,
)
def test_units_and_their_weights_are_those_of_the_cpu(options, optimizer):
    results = []
    for device in (DEVICE, CPU):
        model = sick_net().to(device)
        plain = re.sub("-(capturable|fused)", "", optimizer)
        moved = OPTIMIZERS[plain if device == CPU else optimizer](model.parameters())
        reactivation = UnitReactivation(model, moved, every=2, batches=1, seed=5, **options)
        reports = [iterate(model, moved, reactivation, number) for number in range(4)]
        results.append((model.state_dict(), moved, [report for report in reports if report is not None]))
    (here, mine, found), (there, other, expected) = results
    for one, its in zip(found, expected, strict=True):
        assert {name: mask.tolist() for name, mask in one.masks.items()} == {
            name: mask.tolist() for name, mask in its.masks.items()
        }
    if options.get("threshold") == 0.0:
        assert all(found[0].masks[name][units].all() for name, units in DEAD.items())
    assert found[0].total > 0
    for name, tensor in there.items():
        torch.testing.assert_close(here[name].to(CPU), tensor, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    for own, its in zip(mine.state.values(), other.state.values(), strict=True):
        for key, value in its.items():
            torch.testing.assert_close(own[key].to(CPU), value, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")


def test_drawn_weights_have_the_bits_of_the_cpu():
    drawn = []
    for device in (DEVICE, CPU):
        model = sick_net().to(device)
        optimizer = SGD(model.parameters(), lr=0.0)
        reactivation = UnitReactivation(model, optimizer, threshold=0.0, every=1, batches=1, scale="initial", seed=5)
        iterate(model, optimizer, reactivation, 0)
        drawn.append([model.get_submodule(name).weight[units].to(CPU) for name, units in DEAD.items()])
    assert all(torch.equal(one, other) for one, other in zip(*drawn, strict=True))


def test_an_initialisation_of_ones_own():
    """Drawn on the device, from a generator that is afterwards as before."""
    model = sick_net().to(DEVICE)
    optimizer = SGD(model.parameters(), lr=0.0)
    init = nn.init.orthogonal_
    reactivation = UnitReactivation(model, optimizer, threshold=0.0, every=1, batches=1, init=init, scale="initial")
    torch.manual_seed(0)
    expected = torch.rand(3, device=DEVICE)
    torch.manual_seed(0)
    assert iterate(model, optimizer, reactivation, 0).total > 0
    assert torch.equal(torch.rand(3, device=DEVICE), expected)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_a_measurement_goes_on_after_a_state_was_loaded():
    def begin():
        model = sick_net().to(DEVICE)
        optimizer = UnitAdamW(model.parameters(), lr=0.01)
        return (
            model,
            optimizer,
            UnitReactivation(model, optimizer, every=4, batches=4, replacement_rate=0.4, maturity=0),
        )

    whole = begin()
    for number in range(6):
        iterate(*whole, number)
    states = [copy.deepcopy(part.state_dict()) for part in whole]
    parts = begin()
    for part, state in zip(parts, states, strict=True):
        part.load_state_dict(state)
    for number in range(6, 8):
        for each in (whole, parts):
            report = iterate(*each, number)
    assert report.total > 0
    assert all(torch.equal(a, b) for a, b in zip(whole[0].parameters(), parts[0].parameters(), strict=True))


@needs_gpu
@pytest.mark.parametrize("options", [{}, {"scale": "donor"}, {"replacement_rate": 0.3, "maturity": 0}], ids=str)
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "unit-adamw", "unit-adamw-capturable"])
def test_neither_measuring_nor_acting_waits(optimizer, options):
    model = sick_net().to(DEVICE)
    moved = OPTIMIZERS[optimizer](model.parameters())
    reactivation = UnitReactivation(model, moved, every=1, batches=1, **options)
    images = IMAGES.to(DEVICE)
    for number in range(3):
        iterate(model, moved, reactivation, number)
    set_gradients(model, 3)
    with no_waiting():
        model(images)
        moved.step()
        report = reactivation.step()
    assert report.total >= 0


@needs_gpu
@pytest.mark.parametrize("whole", [False, True], ids=["step", "iteration"])
@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"decoupled_weight_decay": False}], ids=str)
def test_a_step_in_a_graph_is_an_eager_one(options, whole):
    """Rows that were reset in between, too."""
    images, labels = IMAGES.to(DEVICE), LABELS.to(DEVICE)

    def run(graphed):
        model = sick_net().to(DEVICE)
        optimizer = UnitAdamW(model.parameters(), lr=0.01, capturable=True, **options)
        set_gradients(model, 0)

        def work():
            if whole:
                optimizer.zero_grad(set_to_none=False)  # the graph reads the gradients from where they are
                nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()

        rows = torch.tensor([True, False, False, True, False, False], device=DEVICE)
        optimizer.step()
        optimizer.reset_units_(model.first.weight, rows)
        if graphed:
            graph = captured(work)
        else:
            for _ in range(3):
                work()
        for number in range(4):
            if number == 2:
                optimizer.reset_units_(model.first.weight, ~rows)
            graph.replay() if graphed else work()
        assert float(optimizer.state[model.first.weight]["step"]) == 8
        return model.state_dict()

    eager, replayed = run(False), run(True)
    for name, tensor in eager.items():
        torch.testing.assert_close(replayed[name], tensor, rtol=1e-5 if whole else 0, atol=1e-6 if whole else 0)


@needs_gpu
def test_a_step_that_is_not_capturable_is_refused_in_a_graph():
    model = sick_net().to(DEVICE)
    optimizer = UnitAdamW(model.parameters(), lr=0.01)
    set_gradients(model, 0)
    optimizer.step()
    before = model.first.weight.clone()
    with pytest.raises(RuntimeError, match="capturable=True"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        optimizer.step()
    assert torch.equal(model.first.weight, before)


@needs_gpu
@pytest.mark.parametrize("foreach", [False, True])
def test_the_optimizer_is_torchs_while_nothing_is_reset(foreach):
    models = [sick_net().to(DEVICE) for _ in range(2)]
    ours, torchs = UnitAdamW(models[0].parameters(), lr=0.01), AdamW(models[1].parameters(), lr=0.01, foreach=foreach)
    for number in range(5):
        for model, optimizer in zip(models, (ours, torchs), strict=True):
            set_gradients(model, number)
            optimizer.step()
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


@needs_gpu
def test_under_a_scaler():
    """torch.amp.GradScaler leaves out steps; the counters do not count them."""
    model = sick_net().to(DEVICE)
    optimizer = UnitAdamW(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**60, growth_interval=1000)
    images, labels = IMAGES.to(DEVICE), LABELS.to(DEVICE)
    left_out = 0
    for _ in range(60):
        before = scaler.get_scale()
        with torch.autocast("cuda", torch.float16):
            loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        left_out += scaler.get_scale() < before
    assert 0 < left_out < 60
    assert float(optimizer.state[model.first.weight]["step"]) == 60 - left_out
    assert all(parameter.isfinite().all() for parameter in model.parameters())
