"""Low-rank projection on a GPU against the CPU: weights, warm starts, budgets, states, compact networks."""

import copy

import pytest
import torch

import we_kernels as wk
from tests.gpu import CPU, DEVICE, full_float32, needs_device  # noqa: F401
from tests.low_rank import networks
from weight_evolution import LowRankProjection, compact_like

pytestmark = [needs_device, pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("full_float32")]
IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def assert_close(here, there, tolerance=1e-4):
    for name, tensor in there.items():
        if tensor.is_floating_point():
            scale = float(tensor.abs().max())
            torch.testing.assert_close(
                here[name].to(CPU), tensor, rtol=0, atol=tolerance * scale, msg=lambda m, n=name: f"{n}: {m}"
            )


def disturb(model, seed):
    """As training would."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=draws).to(parameter.device)
            parameter.add_(0.02 * parameter.abs().mean() * noise)


@pytest.mark.parametrize("energy_transfer", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
def test_steps_are_those_of_the_cpu(memory_format, energy_transfer):
    """The second and third start from the bases of the first."""
    models = [networks.branches().to(device).to(memory_format=memory_format) for device in (DEVICE, CPU)]
    options = {"prune_ratio": 0.6, "energy_transfer": energy_transfer, "linear": True}
    projections = [LowRankProjection(model, **options) for model in models]
    for seed in range(3):
        here, there = (projection.step() for projection in projections)
        assert list(here.energy_kept) == list(there.energy_kept)
        for name, kept in there.energy_kept.items():
            assert here.energy_kept[name] == pytest.approx(kept, rel=1e-4)
        assert_close(models[0].state_dict(), models[1].state_dict(), 1e-4)
        for model in models:
            disturb(model, seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(64, 27), (20, 300), (33, 33), (128, 576)], ids=str)
def test_the_operator(shape, dtype):
    draws = torch.Generator().manual_seed(1)
    weight = (torch.randn(shape, generator=draws) * torch.logspace(0, -2, shape[0])[:, None]).to(dtype)
    scale = torch.rand(shape[0], generator=draws) + 0.5
    here, there = weight.to(DEVICE), weight.clone()
    for given in (None, scale):
        rank = min(shape) // 3
        found = wk.project_low_rank_([here], [rank], [None if given is None else given.to(DEVICE)])
        expected = wk.project_low_rank_([there], [rank], [given])
        tolerance = 1e-4 if dtype in (torch.float32, torch.float64) else 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(here.to(CPU), there, rtol=0, atol=tolerance * float(there.abs().max()))
        torch.testing.assert_close(found.energy_kept.to(CPU), expected.energy_kept.to(CPU), rtol=1e-2, atol=0)


def test_ranks_of_a_budget_are_those_of_the_cpu():
    here, there = (
        LowRankProjection(networks.branches().to(device), budget=0.5, input_size=(3, 8, 8)) for device in (DEVICE, CPU)
    )
    assert here.ranks == there.ranks


def test_a_compact_network_computes_what_the_projected_one_does():
    model = networks.branches().to(DEVICE).to(memory_format=torch.channels_last).eval()
    projection = LowRankProjection(model, prune_ratio=0.6)
    projection.step()
    compact, images = projection.compact(), IMAGES.to(DEVICE)
    assert {tensor.device.type for tensor in compact.state_dict().values()} == {DEVICE.type}
    with torch.no_grad():
        torch.testing.assert_close(compact(images), model(images), rtol=1e-3, atol=1e-3)
    again = compact_like(networks.branches(), projection.compact_ranks)
    again.load_state_dict(compact.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(IMAGES), compact(images).to(CPU), rtol=1e-3, atol=1e-3)
    report = projection.report((3, 8, 8), latency=True, min_run_time=0.01)
    assert report.macs_after < report.macs_before


def test_a_state_goes_from_device_to_device():
    model = networks.branches().to(DEVICE)
    projection = LowRankProjection(model, prune_ratio=0.6)
    projection.step()
    disturb(model, 0)
    other = copy.deepcopy(model).to(CPU)
    resumed = LowRankProjection(other, prune_ratio=0.6)
    resumed.load_state_dict(projection.state_dict())
    projection.step()
    resumed.step()
    assert_close(model.state_dict(), other.state_dict())
