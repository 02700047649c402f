"""One rank of test_partial_filters: weights of which every rank has some input channels, against one process.

python -m tests.ranks PROCESSES tests.sharding.partial_worker FOLDER
"""

from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from unittest.mock import patch

import pytest
import torch
import torch._dynamo
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.modules.conv import _ConvNd

import we_kernels as wk
from tests.sharding import worker
from tests.sharding.networks import ConvNeXtBlock, make, scaled, shard
from tests.sharding.worker import MUCH, assert_equal, counted, whole, with_error
from weight_evolution import AsynchronousSGD, AsynchronousUpdate, ExchangeError, WeightEvolution

CASES = {}
STEPS = 2

case = partial(worker.case, cases=CASES)
main = partial(worker.run, CASES, most=4)


class Perceptron(nn.Module):
    """As in a transformer: a wide Linear and a narrow one."""

    def __init__(self, features):
        super().__init__()
        self.up, self.down = nn.Linear(features, 4 * features), nn.Linear(4 * features, features)

    def forward(self, x):
        return x + self.down(self.up(x).relu())


def perceptrons():
    return scaled(nn.Sequential(nn.Linear(5, 9), Perceptron(9), nn.BatchNorm1d(9), Perceptron(9), nn.Linear(9, 3)))


def tensor_parallel(model, mesh):
    """Blocks as their authors of tensor parallelism have them; the rest is whole."""
    plans = {
        Perceptron: {"up": ColwiseParallel(), "down": RowwiseParallel()},
        ConvNeXtBlock: {"widen": ColwiseParallel(), "narrow": RowwiseParallel()},
    }
    for block in list(model.modules()):
        if type(block) in plans:
            parallelize_module(block, mesh, plans[type(block)])
    return model


def by_channels(model, mesh, placements=None):
    """Every convolution and Linear sharded along its input channels, its bias on all ranks."""
    for module in model.modules():
        if isinstance(module, (_ConvNd, nn.Linear)):
            own = placements or [Shard(0 if getattr(module, "transposed", False) else 1)]
            module.weight = nn.Parameter(distribute_tensor(module.weight.detach(), mesh, own))
    return model


def round_(*models):
    """To small multiples of 1/8, of which float32 sums are exact in any order."""
    with torch.no_grad():
        for model in models:
            for parameter in model.parameters():
                local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
                local.copy_(local.mul(8).round().div(8))


def assert_same_steps(alone, sharded, reference, model):
    """Bit for bit, where the sums of what is measured are exact; those after blends are not."""
    changed = 0
    for _ in range(STEPS):
        round_(reference, model)
        assert alone.skipped == sharded.skipped
        before = whole(reference)
        one, other = alone.step(), sharded.step()
        assert one.to_dict() == other.to_dict()
        assert_equal(one.importance_before, other.importance_before)
        assert_equal(one.donors, other.donors)
        for name, importance in one.importance_after.items():
            torch.testing.assert_close(importance, other.importance_after[name], rtol=1e-6, atol=0)
        assert alone.state_dict() == sharded.state_dict()
        after = whole(reference)
        assert_equal(after, whole(model))
        changed += sum(not torch.equal(before[name], after[name]) for name in before)
    assert changed > STEPS


@case(2, "float32", "paper")
@case(4, "bfloat16", "released", slow=True)
def perceptron(mesh, dtype, crossover):
    torch.manual_seed(0)
    reference = perceptrons().to(getattr(torch, dtype))
    torch.manual_seed(0)
    model = tensor_parallel(perceptrons().to(getattr(torch, dtype)), mesh)
    assert [type(p) is nn.Parameter for p in model[1].parameters()].count(True) == 0
    model(torch.randn(2, 5, dtype=getattr(torch, dtype)))
    alone, sharded = (WeightEvolution(m, crossover=crossover, **MUCH) for m in (reference, model))
    assert_same_steps(alone, sharded, reference, model)


@case(2, "float32", "paper")
@case(4, "float32", "released", slow=True)
@case(4, "float16", "paper", slow=True)
def convnext_block(mesh, dtype, crossover):
    """With a depthwise convolution that is whole."""
    dtype = getattr(torch, dtype)
    reference, model = make("convnext", dtype, 1), tensor_parallel(make("convnext", dtype, 1), mesh)
    alone, sharded = (WeightEvolution(m, crossover=crossover, **MUCH) for m in (reference, model))
    assert_same_steps(alone, sharded, reference, model)


@case(2, "resnet", "float32", "paper")
@case(2, "mobilenet", "bfloat16", "paper")
@case(2, "convnext", "float64", "released")
@case(4, "resnet", "float16", "released", slow=True)
@case(4, "mobilenet", "float32", "paper", slow=True)
@case(4, "convnext", "bfloat16", "paper", slow=True)
def channels(mesh, name, dtype, crossover):
    """Ranks of depthwise convolutions, or of images of three channels, have none of them."""
    dtype = getattr(torch, dtype)
    reference, model = make(name, dtype, 1), by_channels(make(name, dtype, 1), mesh)
    alone, sharded = (WeightEvolution(m, crossover=crossover, **MUCH) for m in (reference, model))
    assert_same_steps(alone, sharded, reference, model)


@case(2, "starving")
@case(2, "inferior shifts")
@case(2, "torch backend")
def options(mesh, which):
    changed = {
        "starving": {"local_ratio": 1e-6, "starvation_divisor": 3.0},
        "inferior shifts": {"norm_shift_rate": "inferior"},
    }.get(which, {})
    reference, model = make("resnet", seed=1), by_channels(make("resnet", seed=1), mesh)
    alone, sharded = (WeightEvolution(m, **{**MUCH, **changed}) for m in (reference, model))
    with wk.use_backend("torch") if which == "torch backend" else nullcontext():
        assert_same_steps(alone, sharded, reference, model)
