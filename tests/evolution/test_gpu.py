"""`WeightEvolution` on a GPU: weights and state are those of the CPU; recorded steps beside captured optimizers."""

import pytest
import torch
from torch.optim import SGD, AdamW

from tests.evolution.test_evolution import network
from tests.gpu import CPU, DEVICE, captured, needs_device, needs_gpu
from tests.waiting import no_waiting
from weight_evolution import UnitAdamW, WeightEvolution

pytestmark = [needs_device, pytest.mark.filterwarnings("default")]
OPTIONS = {
    "conv_rate": 0.5,
    "norm_scale_rate": 0.3,
    "norm_shift_rate": "inferior",
    "linear_rate": 0.3,
    "local_ratio": 0.5,
}
OPTIMIZERS = {
    "sgd": lambda parameters, fused: SGD(parameters, lr=0.01, momentum=0.9, fused=fused),
    "adamw": lambda parameters, fused: AdamW(parameters, lr=0.01, fused=fused),
    "unit-adamw": lambda parameters, fused: UnitAdamW(parameters, lr=0.01),
}


def set_gradients(model, seed):
    """The same on every device, and lying as autograd leaves them: PyTorch's fused steps on CUDA mix up others."""
    draws = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape, generator=draws))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("optimizer_state", ["fill", "reset", "keep"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "adamw-fused", "unit-adamw"])
def test_weights_state_and_report_are_those_of_the_cpu(optimizer, optimizer_state, memory_format):
    results = []
    for device in (DEVICE, CPU):
        model = network().to(device).to(memory_format=memory_format)
        fused = True if "fused" in optimizer and device.type == "cuda" else None
        moved = OPTIMIZERS[optimizer.removesuffix("-fused")](model.parameters(), fused)
        evolution = WeightEvolution(model, optimizer=moved, optimizer_state=optimizer_state, **OPTIONS)
        reports = []
        for epoch in range(3):
            set_gradients(model, epoch)
            moved.step()
            reports.append(evolution.step(epoch=epoch))
        results.append((model.state_dict(), moved.state_dict()["state"], reports))
    (here, state, reports), (there, other, expected) = results
    assert [report.inferior for report in reports] == [report.inferior for report in expected]
    assert sum(reports[0].inferior.values()) > 0
    for name, tensor in there.items():
        torch.testing.assert_close(here[name].to(CPU), tensor, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    for place, entries in other.items():
        for key, value in entries.items():
            own = torch.as_tensor(state[place][key]).to(CPU)
            torch.testing.assert_close(own, torch.as_tensor(value), rtol=1e-5, atol=1e-6, check_dtype=False)


@needs_gpu
@pytest.mark.parametrize("optimizer_state", ["fill", "reset"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_does_not_wait(optimizer, optimizer_state):
    model = network().to(DEVICE)
    moved = OPTIMIZERS[optimizer](model.parameters(), None)
    evolution = WeightEvolution(model, optimizer=moved, optimizer_state=optimizer_state, **OPTIONS)
    for epoch in range(2):
        set_gradients(model, epoch)
        moved.step()
        evolution.step(epoch=epoch)
    with no_waiting():
        report = evolution.step(epoch=2)
    assert report.rates


@needs_gpu
@pytest.mark.parametrize("kind", [AdamW, UnitAdamW])
def test_a_recorded_evolution_beside_a_captured_optimizer(kind):
    """Both graphs replayed in turn give what eager steps give."""

    def run(graphed):
        model = network().to(DEVICE)
        optimizer = kind(model.parameters(), lr=0.01, capturable=True)
        set_gradients(model, 0)
        evolution = WeightEvolution(model, cuda_graph=graphed, **OPTIONS)
        if graphed:
            graph = captured(optimizer.step)
        else:
            for _ in range(3):
                optimizer.step()
        inferior = []
        for epoch in range(5):
            graph.replay() if graphed else optimizer.step()
            inferior.append(evolution.step(epoch=epoch).inferior)
        return model.state_dict(), optimizer.state_dict()["state"], inferior

    (replayed, state, inferior), (eager, other, expected) = run(True), run(False)
    assert inferior == expected
    assert sum(inferior[-1].values()) > 0
    assert all(torch.equal(replayed[name], tensor) for name, tensor in eager.items())
    assert all(torch.equal(state[place][key], value) for place, own in other.items() for key, value in own.items())


def test_a_state_goes_from_device_to_device():
    def begin(device):
        model = network().to(device)
        return model, WeightEvolution(model, **OPTIONS)

    model, evolution = begin(DEVICE)
    for epoch in range(2):
        evolution.step(epoch=epoch)
    other, resumed = begin(CPU)
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(evolution.state_dict())
    found, expected = resumed.step(epoch=2), evolution.step(epoch=2)
    assert found.inferior == expected.inferior
    for one, tensor in zip(other.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, tensor.to(CPU), rtol=1e-5, atol=1e-6)
