"""`FilterGrafting` of networks on a GPU against the CPU."""

import pytest
import torch

from tests.gpu import CPU, DEVICE, needs_device
from tests.grafting.grafting_networks import clone, small
from weight_evolution import FilterGrafting, distillation_loss

pytestmark = [needs_device, pytest.mark.filterwarnings("default")]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("networks", [2, 3])
@pytest.mark.parametrize("options", [{}, {"level": "filter"}, {"criterion": "l1"}, {"sharpness": 5.0}], ids=str)
def test_two_steps_are_those_of_the_cpu(options, networks, memory_format):
    results = []
    for device in (DEVICE, CPU):
        models = [small(seed).to(device).to(memory_format=memory_format) for seed in range(networks)]
        grafting = FilterGrafting(models, **options)
        results.append(
            ([clone(model) for model in models], [grafting.step(), grafting.step()], list(map(clone, models)))
        )
    (_, reports, here), (before, expected, there) = results
    for one, other in zip(reports, expected, strict=True):
        for own, its in zip(one.entropies, other.entropies, strict=True):
            assert own == pytest.approx(its, rel=1e-4, abs=1e-5)
        assert one.invalid_after == other.invalid_after
    for own, its, old in zip(here, there, before, strict=True):
        assert any(not torch.equal(its[name], old[name]) for name in its)
        for name, tensor in its.items():
            torch.testing.assert_close(own[name].to(CPU), tensor, rtol=1e-3, atol=1e-4, check_dtype=True)


def test_the_loss_of_a_teacher():
    draws = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(6, 10, generator=draws) for _ in range(2))
    here = distillation_loss(student.to(DEVICE), [teacher.to(DEVICE)], 3.0)
    torch.testing.assert_close(here.to(CPU), distillation_loss(student, [teacher], 3.0), rtol=1e-5, atol=1e-6)
