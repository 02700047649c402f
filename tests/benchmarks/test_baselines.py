import contextlib

import pytest
import torch

from benchmarks.baselines import Backend, PerLayer, implementations
from benchmarks.case import Case
from benchmarks.verify import WrongResultError, verify


@pytest.mark.parametrize("rule", ["paper", "released"])
@pytest.mark.parametrize("norms", [False, True], ids=["convs", "with norms"])
@pytest.mark.parametrize("rate", [0.2, 0.9])
def test_every_implementation_equals_the_reference(rule, norms, rate):
    case = Case("resnet20", rate, norms=norms, rule=rule)
    found, _ = implementations(torch.device("cpu"))
    assert [x.name for x in found][:2] == ["per_layer", "torch"]
    for implementation in found:
        verify(implementation, case)


@pytest.mark.parametrize("rule", ["paper", "released"])
def test_zero_denominators_change_nothing(rule):
    case = Case("resnet20", rule=rule)
    for weight in case.weights:
        weight[:, 1] = 0  # one kernel of every filter, so of inferior ones and of their donors
    case.set_originals()
    verify(PerLayer(), case)

    case = Case("mobilenetv2", norms=True, rule=rule)
    for weight in case.weights:
        weight.zero_()
    donor = torch.full((case.bank.num_filters,), -1, dtype=torch.int32)
    for rows in case.bank.split(donor):
        rows[2] = 0
    PerLayer().crossover(case, donor)
    assert all(int(weight.count_nonzero()) == 0 for weight in case.weights)


def test_per_layer_takes_over_the_starvation_counter():
    case = Case("resnet20", rate=0.9, norms=True)
    for weight in case.weights:
        weight.copy_(torch.ones_like(weight) + 1e-3 * torch.arange(len(weight)).view(-1, *[1] * (weight.dim() - 1)))
        weight.div_(weight.abs().flatten(1).sum(1).amax() if weight.dim() > 1 else weight.amax())
    case.set_originals()
    case.starvation_limit = 4
    importance, donor = PerLayer().step(case)
    assert 0 < int((donor >= 0).sum()) < len(case.weights), "one filter of every fourth starving layer"
    assert len(importance) == case.bank.num_filters
    case.restore()
    verify(PerLayer(), case)


class Faulty(PerLayer):
    """Right but for one operation."""

    name = "faulty"

    def __init__(self, operation):
        self.operation = operation

    def active(self):
        return contextlib.nullcontext()

    def importance(self, case):
        result = super().importance(case)
        return result * (1 + 1e-4) if self.operation == "importance" else result

    def match(self, case, importance):
        donor = super().match(case, importance)
        if self.operation == "match":
            donor[(donor >= 0).nonzero()[0]] = -1
        return donor

    def crossover(self, case, donor):
        super().crossover(case, donor)
        if self.operation == "crossover":
            case.weights[0].view(-1)[0] += 1e-6

    def step(self, case):
        if self.operation == "idle step":
            return super().importance(case), super().match(case, super().importance(case))
        result = super().step(case)
        if self.operation == "starvation":
            case.starvation += 1
        return result


@pytest.mark.parametrize("operation", ["importance", "match", "crossover", "idle step", "starvation"])
def test_verify_finds(operation):
    case = Case("resnet20")
    with pytest.raises(WrongResultError, match="faulty"):
        verify(Faulty(operation), case)


def test_an_unavailable_backend_is_listed_with_its_reason(monkeypatch):
    monkeypatch.setattr(
        "benchmarks.baselines.backends.unavailable", lambda name, device: f"no {name}" if name != "torch" else None
    )
    found, skipped = implementations(torch.device("cpu"))
    assert [x.name for x in found] == ["per_layer", "torch"]
    assert skipped == {"native": "no native", "triton": "no triton"}


def test_the_interpreter_is_not_timed(monkeypatch):
    monkeypatch.setattr("benchmarks.baselines.backends.unavailable", lambda name, device: None)
    found, skipped = implementations(torch.device("cpu"))
    assert [x.name for x in found] == ["per_layer", "torch", "native"]
    assert "interprets" in skipped["triton"]


def test_backends_are_forced():
    case = Case("resnet20")
    backend = Backend("torch")
    with backend.active():
        importance, donor = backend.step(case)
    assert importance.dtype == torch.float32
    assert donor.dtype == torch.int32
