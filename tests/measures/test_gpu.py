"""Measures of a network on a GPU against the CPU; under autocast, in channels_last, without waiting."""

import pytest
import torch
from torch.nn import functional

from tests.gpu import CPU, DEVICE, full_float32, needs_device, needs_gpu  # noqa: F401
from tests.model.unit_networks import ConvNet
from tests.waiting import no_waiting
from weight_evolution import UnitActivity, count_invalid_filters, measure_overlap

pytestmark = [needs_device, pytest.mark.filterwarnings("default"), pytest.mark.usefixtures("full_float32")]
IMAGES = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 2


def network():
    torch.manual_seed(0)
    return ConvNet()


def passes(model, dtype=None, images=IMAGES, labels=LABELS):
    """Forward and backward, three times."""
    for number in range(3):
        with torch.autocast(images.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            logits = model(images + number / 10)
        functional.cross_entropy(logits.float(), labels).backward()


def measured(device, dtype=None, memory_format=torch.contiguous_format):
    model = network().to(device).to(memory_format=memory_format)
    images = IMAGES.to(device).contiguous(memory_format=memory_format)
    with UnitActivity(model, with_gradients=True) as activity:
        passes(model, dtype, images, LABELS.to(device))
    return activity.report()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16], ids=str)
def test_activity_in_training(dtype, memory_format):
    here, there = measured(DEVICE, dtype, memory_format), measured(CPU)
    assert here.batches == there.batches
    for name, values in there.activation.items():
        tolerance = 1e-4 if dtype is None else 0.05 * float(values.max())
        torch.testing.assert_close(here.activation[name], values, rtol=1e-3, atol=tolerance, msg=f"{name}, {dtype}")
        torch.testing.assert_close(here.outgoing[name], there.outgoing[name], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(here.incoming[name], there.incoming[name], rtol=1e-5, atol=1e-6)


@needs_gpu
@pytest.mark.parametrize("batches", [None, 2])
def test_measuring_does_not_wait(batches):
    model = network().to(DEVICE)
    images, labels = IMAGES.to(DEVICE), LABELS.to(DEVICE)
    activity = UnitActivity(model, batches=batches)
    with activity:
        passes(model, None, images, labels)
        activity.activations()
        with no_waiting():
            passes(model, None, images, labels)
            found = activity.activations()
    assert found.device.type == "cuda"
    assert bool((found > 0).any())


@needs_gpu
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_network_that_is_compiled_after_the_start(mode):
    model, images = network().to(DEVICE).eval(), IMAGES.to(DEVICE)
    with torch.no_grad(), UnitActivity(model) as activity:
        compiled = torch.compile(model, mode=mode)
        for _ in range(4):
            compiled(images)
    with torch.no_grad(), UnitActivity(model) as plain:
        model(images)
    torch.testing.assert_close(activity.activations(), plain.activations(), rtol=1e-3, atol=1e-4)
    assert set(activity.report().batches.values()) == {4}


def test_overlap_and_invalid_filters():
    here, there = network().to(DEVICE), network()
    with torch.no_grad():
        for model in (here, there):
            model.first.weight[:2] *= 1e-4
    one, other = measure_overlap(here), measure_overlap(there)
    assert one.mean == pytest.approx(other.mean, rel=1e-4)
    assert one.model_maximum == pytest.approx(other.model_maximum, rel=1e-4)
    for threshold in (0.1, 0.01):
        assert count_invalid_filters(here, threshold) == count_invalid_filters(there, threshold)
