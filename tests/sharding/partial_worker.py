"""One rank of test_partial_filters: weights of which every rank has some input channels, against one process.

python -m tests.ranks PROCESSES tests.sharding.partial_worker FOLDER
"""

from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from unittest.mock import patch

import torch
import torch._dynamo
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.modules.conv import _ConvNd

import we_kernels as wk
from tests.sharding import worker
from tests.sharding.networks import ConvNeXtBlock, make, scaled
from tests.sharding.worker import (
    MUCH,
    assert_equal,
    check_state_of_the_optimizer,
    counted,
    full,
    give_gradients,
    whole,
    with_error,
)
from weight_evolution import AsynchronousSGD, AsynchronousUpdate, ExchangeError, WeightEvolution

CASES = {}
STARTS = (2, 4)
STEPS = 2

case = partial(worker.case, cases=CASES)
main = partial(worker.run, CASES, starts=STARTS, most=4)


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
            module.weight = nn.Parameter(distribute_tensor(full(module.weight).detach(), mesh, own))
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


@case(2, "starving", slow=True)
@case(2, "inferior shifts")
@case(2, "torch backend", slow=True)
def options(mesh, which):
    changed = {
        "starving": {"local_ratio": 1e-6, "starvation_divisor": 3.0},
        "inferior shifts": {"norm_shift_rate": "inferior"},
    }.get(which, {})
    reference, model = make("resnet", seed=1), by_channels(make("resnet", seed=1), mesh)
    alone, sharded = (WeightEvolution(m, **{**MUCH, **changed}) for m in (reference, model))
    with wk.use_backend("torch") if which == "torch backend" else nullcontext():
        assert_same_steps(alone, sharded, reference, model)


@case(2, "perceptron")
@case(2, "convnext", slow=True)
@case(4, "resnet", slow=True)
def sums_that_are_rounded(mesh, name):
    """In another order than in one process: the same donors, and the same weights but for coefficients' last bits."""
    torch.manual_seed(0)
    reference = perceptrons() if name == "perceptron" else make(name)
    torch.manual_seed(0)
    model = tensor_parallel(perceptrons(), mesh) if name == "perceptron" else by_channels(make(name), mesh)
    alone, sharded = (WeightEvolution(m, **MUCH) for m in (reference, model))
    one, other = alone.step(), sharded.step()
    assert_equal(one.donors, other.donors)
    assert sum(one.inferior.values()) > 4
    for name, importance in one.importance_before.items():
        torch.testing.assert_close(other.importance_before[name], importance, rtol=1e-6, atol=0)
    there = whole(model)
    for name, weight in whole(reference).items():
        torch.testing.assert_close(there[name], weight, rtol=1e-5, atol=1e-6)
    of_all = [None] * mesh.size()
    dist.all_gather_object(of_all, (other.to_dict(), whole(model)), group=mesh.get_group())
    for report, weights in of_all:
        assert report == of_all[0][0]
        assert_equal(weights, of_all[0][1])


@case(2, "channels_last")
@case(2, "transposed")
@case(2, "1d", slow=True)
@case(2, "3d", slow=True)
def other_layouts(mesh, which):
    torch.manual_seed(3)
    kind = {"transposed": nn.ConvTranspose2d, "1d": nn.Conv1d, "3d": nn.Conv3d}.get(which, nn.Conv2d)

    def network():
        torch.manual_seed(3)
        layers = kind(7, 10, 2), kind(10, 8, 3), kind(8, 9, 1)
        for layer in layers:
            if which == "transposed":
                filters = scaled(nn.ParameterList([layer.weight.transpose(0, 1)]), rounded=True)[0]
                layer.weight.data = filters.data.transpose(0, 1)
            else:
                scaled(layer, rounded=True)
            if which == "channels_last":
                layer.weight.data = layer.weight.data.to(memory_format=torch.channels_last)
        return nn.Sequential(*layers)

    reference, model = network(), by_channels(network(), mesh)
    if which == "channels_last":
        for layer in model:
            local = layer.weight.to_local().detach().clone(memory_format=torch.channels_last)
            weight = DTensor.from_local(local, mesh, [Shard(1)], shape=layer.weight.shape, stride=layer.weight.stride())
            layer.weight = nn.Parameter(weight)
    alone, sharded = (WeightEvolution(m, **MUCH, include=["*"]) for m in (reference, model))
    assert_same_steps(alone, sharded, reference, model)


@case("hsdp", slow=True)
def replicated_along_another_dimension(mesh):
    reference, model = make("convnext", seed=1), by_channels(make("convnext", seed=1), mesh, [Replicate(), Shard(1)])
    alone, sharded = (WeightEvolution(m, **MUCH) for m in (reference, model))
    assert_same_steps(alone, sharded, reference, model)


@case(2)
@case(4, slow=True)
def some_by_filters_some_by_channels_some_whole(mesh):
    """Donors travel of the first only."""
    reference, model = make("convnext", seed=1), make("convnext", seed=1)
    fully_shard(model[0], mesh=mesh)
    by_channels(model[1], mesh)
    fully_shard(model[2].widen, mesh=mesh)
    alone, sharded = (WeightEvolution(m, **MUCH) for m in (reference, model))
    assert_same_steps(alone, sharded, reference, model)


@case(2)
def fsdp_along_channels(mesh):
    """FSDP2's shard_placement_fn."""

    def network():
        torch.manual_seed(0)
        layers = nn.Conv2d(4, 9, 3), nn.BatchNorm2d(9), nn.Conv2d(9, 6, 1), nn.Conv2d(6, 5, 3)
        return scaled(nn.Sequential(*layers), rounded=True)

    def along(parameter):
        return Shard(1) if parameter.dim() > 1 and parameter.shape[1] % mesh.size() == 0 else Shard(0)

    reference, model = network(), fully_shard(network(), mesh=mesh, shard_placement_fn=along)
    with torch.no_grad():
        model(torch.randn(1, 4, 7, 7))
    alone, sharded = (WeightEvolution(m, **MUCH) for m in (reference, model))
    assert model[0].weight.placements != model[2].weight.placements
    assert_same_steps(alone, sharded, reference, model)
    linear = fully_shard(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)), mesh=mesh, shard_placement_fn=along)
    with_error(TypeError, r"0.bias is not.*every rank has a part.*Replicate", lambda: WeightEvolution(linear, **MUCH))


@case(2, "mobilenet", "fill")
@case(2, "perceptron", "reset", slow=True)
@case(4, "perceptron", "fill", slow=True)
@case(4, "mobilenet", "keep", slow=True)
def state_of_the_optimizer(mesh, name, choice):
    """Of the depthwise layer of MobileNetV2 one rank has all, another nothing."""
    torch.manual_seed(0)
    reference = perceptrons() if name == "perceptron" else make(name, seed=1)
    torch.manual_seed(0)
    model = tensor_parallel(perceptrons(), mesh) if name == "perceptron" else by_channels(make(name, seed=1), mesh)
    check_state_of_the_optimizer(reference, model, choice, assert_same_steps)


@case(2)
def traffic(mesh):
    """docs/scaling.md, "What travels": a float for each rank and filter in each gather, and no donors."""
    widths = (64, 64, 128, 128)
    convs = [nn.Conv2d(a, b, 3) for a, b in pairwise(widths)]
    model = by_channels(scaled(nn.Sequential(*convs, nn.Conv2d(128, 99, 1))), mesh)
    evolution = WeightEvolution(model, **MUCH, include=["*"])
    with counted() as sent:
        report = evolution.step()
    assert all(report.inferior.values())
    assert sent["all_to_all_single"] == 0
    assert sent["all_gather"] == 2 * mesh.size() * 4 * (3 + 64 + 128 + 128 + 99)
    assert sent["all_gather"] < 0.01 * sum(4 * parameter.numel() for parameter in model.parameters())


@case(2)
def a_weight_that_is_not_finite(mesh):
    """In the part of one rank: all raise the same, and nothing changes."""
    model = by_channels(make("resnet"), mesh)
    sharded = WeightEvolution(model, **MUCH)
    with torch.no_grad():
        if mesh.get_rank() == 1:
            model[2].first.weight.to_local()[0, 0, 0, 0] = float("nan")
    before = {name: part.nan_to_num(77) for name, part in whole(model).items()}
    with_error(wk.NonFiniteWeightError, "2.first.weight: ", sharded.step)
    assert_equal(before, {name: part.nan_to_num(77) for name, part in whole(model).items()})


@case(2)
def a_rank_that_fails_tells_the_others(mesh):
    """In the measuring before and after the crossover; then all go on together."""
    reference, model = make("resnet", seed=1), by_channels(make("resnet", seed=1), mesh)
    alone, sharded = (WeightEvolution(m, **MUCH) for m in (reference, model))
    before, state = whole(model), sharded.state_dict()
    measure = wk.filter_importance
    for failing in (1, 2):
        calls = []

        def measured(bank, failing=failing, calls=calls):
            calls.append(bank)
            if len(calls) == failing and mesh.get_rank() == 1:
                raise OSError("no such file")
            return measure(bank)

        with patch.object(wk, "filter_importance", measured):
            if mesh.get_rank() == 1:
                with_error(OSError, "no such file", sharded.step)
            else:
                with_error(ExchangeError, "rank 1 of the group failed.*nothing was changed", sharded.step)
        assert_equal(before, whole(model))
        assert sharded.state_dict() == state
    assert_same_steps(alone, sharded, reference, model)


@case(2)
def what_cannot_work_is_refused_when_made(mesh):
    with_error(
        TypeError,
        r"importance= a callable needs whole filters.*any of 0.weight.*leave importance= out.*exclude=\['0'\]",
        lambda: WeightEvolution(by_channels(make("resnet"), mesh), importance=wk.filter_importance),
    )
    linear = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    by_channels(linear, mesh)
    linear[0].bias = nn.Parameter(distribute_tensor(linear[0].bias.detach(), mesh, [Shard(0)]))
    with_error(TypeError, "0.bias is not spread.*keep the bias whole", lambda: WeightEvolution(linear, **MUCH))
    by_channels(linear, mesh, [Replicate()])
    with_error(TypeError, "0.bias is not spread.*shard both or none", lambda: WeightEvolution(linear, **MUCH))


@case(4, slow=True)
def two_sharded_dimensions_are_refused(mesh):
    both = worker.MESHES["hsdp"]
    for placements in ([Shard(0), Shard(1)], [Shard(1), Shard(1)]):
        model = by_channels(make("resnet"), both, placements)
        with_error(TypeError, "0.weight is a DTensor sharded along 2 dim.*replicate", partial(WeightEvolution, model))
    model = torch.nn.Sequential(nn.Linear(4, 4), Perceptron(4), nn.BatchNorm1d(4))
    parallelize_module(model[1], both["shard"], {"up": ColwiseParallel(), "down": RowwiseParallel()})
    fully_shard(model, mesh=both["replicate"])
    with_error(TypeError, "1.up.weight.*sharded along 2 dim.*replicate", lambda: WeightEvolution(model, **MUCH))


@case(2, "by channels", "filters")
@case(2, "by filters", "input_channels")
def asynchronous_updates_of_nothing(mesh, how, select):
    """Ranks that have no element of a weight: the depthwise one, and the layer of one filter."""
    for own_sgd in (True, False):
        reference, model = make("mobilenet"), make("mobilenet")
        if how == "by channels":
            by_channels(model, mesh)
        else:
            fully_shard(model, mesh=mesh)
        pair = []
        for network in (reference, model):
            if own_sgd:
                pair.append(AsynchronousSGD(network.parameters(), 0.1, 0.9, model=network, seed=3, select=select))
            else:
                pair.append(torch.optim.SGD(network.parameters(), 0.1, 0.9, foreach=False))
                AsynchronousUpdate(pair[-1], network, 0.5, 3, select)
        before = whole(reference)
        for _ in range(2):
            give_gradients(reference, model)
            for optimizer in pair:
                optimizer.step()
            assert_equal(whole(reference), whole(model))
        assert not any(map(torch.equal, before.values(), whole(reference).values()))
