"""Measures only read a model, and refuse weights that are not whole."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.nn.utils import parametrizations, prune

from weight_evolution import count_invalid_filters
from weight_evolution.measures.overlap import filter_overlap
from weight_evolution.model.copies import copy_model

MEASURES = [lambda model: count_invalid_filters(model, 1.0), filter_overlap]


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    "prepare",
    [
        parametrizations.spectral_norm,
        parametrizations.weight_norm,
        nn.utils.spectral_norm,
        lambda conv: prune.random_unstructured(conv, "weight", 0.5),
    ],
)
def test_computed_weights_are_read_and_not_changed(measure, prepare):
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 1))
    prepare(model[0])
    model(torch.ones(1, 3, 4, 4))
    before = copy.deepcopy(model.state_dict())
    found = measure(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    plain = copy_model(model.eval())
    plain[0] = nn.Conv2d(3, 5, 3)
    plain[0].weight = nn.Parameter(model[0].weight.detach().clone())
    expected = measure(plain)
    assert found == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("measure", MEASURES)
def test_wrapped_modules_have_their_names_and_count_once(measure):
    plain = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Sequential(nn.Conv2d(5, 4, 1)))
    plain.again = plain[0]
    wrapped = copy.deepcopy(plain)
    wrapped[0] = checkpoint_wrapper(wrapped[0])
    wrapped[1] = torch.compile(wrapped[1], backend="eager")
    assert measure(nn.DataParallel(wrapped)) == measure(plain)


@pytest.mark.parametrize("measure", MEASURES)
def test_parts_of_a_weight_are_refused(measure):
    model = nn.Sequential(nn.Conv2d(3, 5, 3))
    for part in (model[0].weight.flatten()[:20], torch.empty(0), model[0].weight[:2]):
        model[0].weight = nn.Parameter(part.detach())
        with pytest.raises(ValueError, match=r"0.weight has shape .*, but its Conv2d says \[5, 3, \*, \*\]"):
            measure(model)


@pytest.mark.parametrize("measure", MEASURES)
def test_lazy_weights_are_refused(measure):
    with pytest.raises(TypeError, match=r"0.weight is not initialized yet"):
        measure(nn.Sequential(nn.LazyConv2d(3, 5)))


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (None, "0.weight is None"),
        (torch.ones(5, 3, 3, 3, dtype=torch.int32), "0.weight must be float32, .* got torch.int32"),
        (torch.ones(5, 3, 3, 3, device="meta"), "0.weight is a meta tensor, without values"),
    ],
)
def test_weights_without_values_are_refused(measure, weight, message):
    model = nn.Sequential(nn.Conv2d(3, 5, 3))
    model[0].weight = None if weight is None else nn.Parameter(weight, requires_grad=False)
    with pytest.raises(TypeError, match=message):
        measure(model)


@pytest.fixture
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("measure", MEASURES)
def test_distributed_tensors_are_refused_at_once(measure, mesh):
    model = nn.Sequential(nn.Conv2d(3, 5, 3))
    model[0].weight = nn.Parameter(distribute_tensor(model[0].weight.detach(), mesh, [Shard(0)]))
    with pytest.raises(TypeError, match=r"0.weight is a DTensor, of which (this|each) rank holds a part"):
        measure(model)
