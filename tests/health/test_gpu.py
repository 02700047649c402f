"""`filter_health` of a network on a GPU, whose batches come from the CPU, against the CPU."""

import pytest
import torch

from tests.gpu import CPU, DEVICE, full_float32, needs_device  # noqa: F401
from tests.low_rank.networks import branches
from weight_evolution import filter_health

pytestmark = [needs_device, pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("full_float32")]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("pinned", [False, True])
def test_a_report_is_that_of_the_cpu(pinned, memory_format):
    draws = torch.Generator().manual_seed(0)
    batches = [(torch.randn(4, 3, 8, 8, generator=draws), torch.zeros(4)) for _ in range(3)]
    if pinned and DEVICE.type == "cuda":
        batches = [tuple(part.pin_memory() for part in batch) for batch in batches]
    here, there = (
        filter_health(branches().to(device).to(memory_format=memory_format), batches, input_size=(3, 8, 8))
        for device in (DEVICE, CPU)
    )
    assert_close(here.to_dict(), there.to_dict())
    assert here.table()


def assert_close(here, there, name="report"):
    assert type(here) is type(there), name
    if isinstance(there, dict):
        assert here.keys() == there.keys(), name
        for key, value in there.items():
            assert_close(here[key], value, f"{name}[{key!r}]")
    elif isinstance(there, (list, tuple)):
        assert len(here) == len(there), name
        for i, (one, other) in enumerate(zip(here, there, strict=True)):
            assert_close(one, other, f"{name}[{i}]")
    elif isinstance(there, float):
        assert here == pytest.approx(there, rel=2e-3, abs=1e-5), name
    else:
        assert here == there, name
