"""Each operation and the whole step, by network and implementation; `pytest benchmarks --benchmark-enable` times them.

Without that option every test runs once, as a check that it works. The reported numbers come from run.py, which lets
the implementations take turns and measures the memory floor beside them.
"""

from __future__ import annotations

import functools

import pytest
import torch

from benchmarks.baselines import Implementation, implementations
from benchmarks.case import Case
from benchmarks.verify import verify

MODELS = ("resnet56", "mobilenetv2", "resnet50")
OPERATIONS = ("importance", "match", "crossover", "step")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROUNDS = 20

IMPLEMENTATIONS, SKIPPED = implementations(DEVICE)


@functools.lru_cache(maxsize=1)
def case_of(model: str) -> Case:
    """One network at a time: ResNet-50 and its copy take 190 MB."""
    return Case(model, device=DEVICE)


@pytest.fixture(params=MODELS, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    """A network's filters."""
    return case_of(request.param)


@pytest.fixture(params=["per_layer", "torch", "native", "triton"], scope="module")
def implementation(request: pytest.FixtureRequest, case: Case) -> Implementation:
    """Verified on the network before anything is timed."""
    if request.param in SKIPPED:
        pytest.skip(f"{request.param}: {SKIPPED[request.param]}")
    found = next(x for x in IMPLEMENTATIONS if x.name == request.param)
    verify(found, case)
    return found


@pytest.mark.parametrize("operation", OPERATIONS)
def test_operation(benchmark, case, implementation, operation, request):
    model = request.node.callspec.params["case"]
    benchmark.group = f"{model} {operation}"
    with implementation.active():
        case.restore()
        importance = implementation.importance(case)
        donor = implementation.match(case, importance)
        call = {
            "importance": lambda: implementation.importance(case),
            "match": lambda: implementation.match(case, importance),
            "crossover": lambda: implementation.crossover(case, donor),
            "step": lambda: implementation.step(case),
        }[operation]

        def timed():
            call()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()

        benchmark.pedantic(timed, setup=case.restore, rounds=ROUNDS, warmup_rounds=1)
    replaced = int((donor >= 0).sum())
    benchmark.extra_info.update(model=model, operation=operation, replaced=replaced)
    assert replaced > 0
