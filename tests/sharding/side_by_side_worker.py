"""One rank of test_sharded_grafting: networks that are all spread over the same ranks, compared with whole ones.

python -m tests.ranks PROCESSES tests.sharding.side_by_side_worker FOLDER [case ...]
"""

import copy
import os
import time
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import we_kernels as wk
from tests.sharding import grafting_worker
from tests.sharding.grafting_worker import (
    SHORT,
    counted,
    everything,
    fail,
    held,
    impatient_group,
    loses_another_rank,
    random_statistics,
)
from tests.sharding.networks import make, shard
from tests.sharding.worker import assert_equal, with_error
from weight_evolution import ExchangeError, FilterGrafting

CASES = {}
"""On shapes that begin with the number of groups of ranks, of which each has a mesh and networks of its own."""

case = partial(grafting_worker.case, cases=CASES)


def main(folder, *names):
    grafting_worker.run(CASES, folder, names)


def whole(name, dtype=torch.float32, count=2):
    return [random_statistics(make(name, dtype, seed)) for seed in range(count)]


def pair(networks, name, dtype=torch.float32, count=2, **options):
    """Whole networks, and the same over this rank's mesh."""
    wholes = whole(name, dtype, count)
    return wholes, [shard(model, networks.own, **options) for model in copy.deepcopy(wholes)]


def assert_same_steps(wholes, models, steps=1, **options):
    """Grafts both; the same reports and bits, and something changes in each."""
    alone, spread = FilterGrafting(wholes, **options), FilterGrafting(models, **options)
    for _ in range(steps):
        before = [held(model) for model in models]
        assert alone.step().to_dict() == spread.step().to_dict()
        assert alone.state_dict() == spread.state_dict()
        for reference, model, old in zip(wholes, models, before, strict=True):
            assert_equal(everything(reference), everything(model))
            assert any(not torch.equal(old[name], now) for name, now in held(model).items())
        with torch.no_grad():  # two networks are equal now
            for several in (wholes, models):
                for i, model in enumerate(several):
                    for parameter in model.parameters():
                        parameter.mul_(parameter.abs() + i)
    alone.load_state_dict(spread.state_dict())


@case(1, 2, arguments=("resnet", "float32", 2, {}))
@case(1, 2, arguments=("mobilenet", "float16", 3, {"level": "filter", "bins": 37}))
@case(1, 2, arguments=("convnext", "float64", 2, {"criterion": "l1", "sharpness": 0.01}), slow=True)
@case(1, 2, arguments=("resnet", "bfloat16", 3, {"criterion": "filter-entropy", "round_coefficient": True}), slow=True)
@case(1, 2, 1, arguments=("resnet", "float32", 2, {"level": "filter", "criterion": "filter-entropy"}))
@case(1, 1, 2, arguments=("convnext", "bfloat16", 2, {}), slow=True)
@case(2, 1, arguments=("mobilenet", "float32", 2, {"level": "filter"}))
@case(1, 4, arguments=("resnet", "float16", 3, {"level": "filter"}), slow=True)
@case(1, 4, arguments=("mobilenet", "float32", 2, {}), slow=True)
@case(1, 4, arguments=("convnext", "float32", 2, {"criterion": "l1", "sharpness": 0.01}), slow=True)
@case(1, 2, 2, arguments=("mobilenet", "bfloat16", 2, {"level": "filter"}), slow=True)
@case(1, 2, 2, arguments=("resnet", "float32", 3, {"criterion": "l1", "sharpness": 0.01}), slow=True)
@case(2, 2, arguments=("resnet", "float64", 2, {"level": "filter"}), slow=True)
@case(1, 8, arguments=("mobilenet", "float32", 3, {"level": "filter"}), slow=True)
@case(1, 2, 4, arguments=("resnet", "float32", 2, {"criterion": "filter-entropy"}), slow=True)
def fsdp(name, dtype, count, options, networks):
    """Groups of ranks do not see each other."""
    if networks.number == 0:
        assert_same_steps(*pair(networks, name, getattr(torch, dtype), count), **options)


@case(1, 2)
@case(1, 4, slow=True)
def mixed_with_whole_parameters(networks):
    """A convolution, norms and Linears stay whole, and one convolution is frozen."""
    wholes = whole("resnet", count=3)
    for model in wholes:
        model[2].first.weight.requires_grad_(False)
    models = copy.deepcopy(wholes)
    for model in models:
        ignored = {p for m in model.modules() if isinstance(m, (nn.BatchNorm2d, nn.Linear)) for p in m.parameters()}
        fully_shard(model, mesh=networks.own, ignored_params=ignored | {*model[0].parameters()})
        assert {isinstance(p, DTensor) for p in model.parameters()} == {True, False}
    assert_same_steps(wholes, models, level="filter", criterion="filter-entropy")


@case(1, 2)
def sharded_parameters_that_take_no_part(networks):
    """Then each rank grafts on its own."""
    wholes = whole("resnet")
    models = copy.deepcopy(wholes)
    for model in models:
        fully_shard(model[-1], mesh=networks.own)
    alone, spread = (FilterGrafting(several, exclude=["7"]) for several in (wholes, models))
    alone.step()
    if dist.get_rank() == 0:
        spread.step()
        for reference, model in zip(wholes, models, strict=True):
            assert torch.equal(reference[0].weight, model[0].weight)


@case(1, 2)
def after_validation(networks):
    """The roots keep gathered copies after a forward pass alone, before the grafting is made and between steps."""
    wholes, models = pair(networks, "resnet", reshard_after_forward=False)
    for network in (*wholes, *models):
        network.eval()
        with torch.no_grad():
            network(torch.ones(1, 3, 8, 8))
    assert_same_steps(wholes, models, steps=2)


@case(1, 2)
@case(1, 4, slow=True)
def placed_by_hand(networks):
    """DTensors along other dimensions, some of them without an element on a rank."""
    placements = [Shard(1)], [Shard(0)], [Shard(0)], [Replicate()], [Shard(1)], [Shard(0)]
    wholes, models = [], []
    for seed in range(2):
        torch.manual_seed(seed)
        layers = [nn.ConvTranspose2d(3, 5, 2), nn.BatchNorm2d(5), nn.Conv2d(5, 6, 3), nn.BatchNorm2d(6)]
        wholes.append(random_statistics(nn.Sequential(*layers, nn.Linear(6, 3), nn.Linear(3, 1))))
        nn.init.normal_(wholes[-1][1].weight)
        models.append(copy.deepcopy(wholes[-1]))
        for layer, placement in zip(models[-1], placements, strict=True):
            layer.weight = nn.Parameter(distribute_tensor(layer.weight, networks.own, placement))
    assert_same_steps(wholes, models, level="filter")


@case(1, 2)
def only_a_buffer_is_sharded(networks):
    wholes = whole("resnet")
    models = copy.deepcopy(wholes)
    for model in models:
        model[1].running_mean = distribute_tensor(model[1].running_mean, networks.own, [Shard(0)])
    assert_same_steps(wholes, models)


@case(1, 2)
@case(1, 4, slow=True)
def traffic(networks):
    """docs/scaling.md, "Grafting": no weights travel."""
    models = pair(networks, "resnet", count=3)[1]
    grafting = FilterGrafting(models, bins=7, level="filter")
    scales = sum(scale.numel() for scale in grafting._networks[0].scales().values())
    assert scales
    with counted() as sent:
        grafting.step()
    ranks, convs = dist.get_world_size(), sum(isinstance(module, nn.Conv2d) for module in models[0].modules())
    assert sent["all_reduce"] == 8 * (ranks + 2 * 3 * convs) + 8 * (ranks + 3 * (7 * convs + scales + 2))
    assert sent["batch_isend_irecv"] == 0
    assert 0 < sent["all_gather_object"] < 2 * 300


@case(1, 2)
def a_rank_that_fails_tells_the_others(networks):
    """Wherever it fails; then all go on together."""
    wholes, models = pair(networks, "resnet")
    alone, spread = FilterGrafting(wholes), FilterGrafting(models)
    before = [held(model) for model in models]
    for place in ("first_bad", "_ends", "_numbers", "vector", "invalid"):
        if dist.get_rank() == 1:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(spread._networks[1], place, fail)
                with_error(OSError, "no such file", spread.step)
        else:
            with_error(ExchangeError, "rank 1 failed.*nothing was changed", spread.step)
        for old, model in zip(before, models, strict=True):
            assert_equal(old, held(model))
        assert spread.steps == 0
    alone.step()
    spread.step()
    for reference, model in zip(wholes, models, strict=True):
        assert_equal(everything(reference), everything(model))


@case(1, 2)
def a_weight_that_is_not_finite(networks):
    """On one rank: all raise the same, and nothing changes."""
    models = pair(networks, "resnet")[1]
    spread = FilterGrafting(models)
    if dist.get_rank() == 1:
        with torch.no_grad():
            models[1][2].first.weight.to_local()[0, 0, 0, 0] = float("inf")
    before = [held(model) for model in models]
    with_error(wk.NonFiniteWeightError, r"rank 1, network 1: 2.first.weight is NaN or infinite", spread.step)
    for old, model in zip(before, models, strict=True):
        assert_equal(old, held(model))


@case(1, 2)
def changed_since(networks):
    """A change of all networks is followed, one of some is refused."""
    wholes, models = pair(networks, "resnet")
    alone, spread = FilterGrafting(wholes), FilterGrafting(models)
    for model in (*wholes, *models):
        model[2].first.weight.requires_grad_(False)
    alone.step()
    spread.step()
    for reference, model in zip(wholes, models, strict=True):
        assert_equal(everything(reference), everything(model))
    models[1][0].weight.requires_grad_(False)
    with_error(ValueError, r"models\[1\] differs from models\[0\]: 0.weight is not grafted \(frozen", spread.step)
    models[0][0].weight.requires_grad_(dist.get_rank() == 0)
    models[1][0].weight.requires_grad_(dist.get_rank() == 0)
    with_error(ValueError, "network of rank 1 differs from the network of rank 0: 0.weight is not grafted", spread.step)


@case(1, 2)
def what_cannot_work_is_refused(networks):
    own, rank = networks.own, dist.get_rank()

    def refused(kind, pattern, models, **options):
        with_error(kind, pattern, lambda: FilterGrafting(models, **options))

    def by_hand(mesh, placement):
        """A network whose first weight is placed so."""
        layer = nn.Conv2d(4, 8, 3)
        return nn.Sequential(layer_placed(layer, mesh, placement), nn.BatchNorm2d(8))

    wholes, models = pair(networks, "resnet")
    some = r"models\[{}\].0.weight is a DTensor, but of models\[{}\] nothing .* is; shard all networks .*or none"
    refused(ValueError, some.format(0, 1), [models[0], wholes[1]])
    refused(ValueError, some.format(1, 0), [wholes[0], models[1]])
    refused(
        ValueError,
        r"models\[1\] differs from models\[0\]: 0.weight is .*Replicate.*, not .*Shard",
        [by_hand(own, Shard(0)), by_hand(own, Replicate())],
    )
    replicas = DeviceMesh("cpu", torch.arange(2).view(2, 1), mesh_dim_names=("replicate", "shard"))
    refused(
        ValueError,
        r"models\[1\].0.weight is sharded over .*, models\[0\].0.weight over .*shard all networks of a list over one",
        [models[0], shard(make("resnet"), replicas)],
    )
    ones = [DeviceMesh("cpu", [i]) for i in range(2)]
    refused(ValueError, "0.weight is sharded over .*without this rank", [by_hand(one, Shard(0)) for one in ones])
    lonely = [shard(make("resnet", seed=i), ones[rank]) for i in range(2)]
    refused(
        ValueError,
        rf"models\[0\].0.weight is sharded over the ranks \[{rank}\], the group has \[0, 1\]; pass process_group=",
        lonely,
        process_group=dist.group.WORLD,
    )
    refused(ValueError, "ranks_per_network is for one model per rank", models, ranks_per_network=1)
    everyone = dist.group.WORLD
    refused(ValueError, "process_group is for one model per rank, or sharded ones", wholes, process_group=everyone)
    refused(TypeError, "process_group must be", models, process_group=2)
    refused(ValueError, r"models\[1\].0.weight shares memory with models\[0\].0.weight", [models[0], models[0]])
    refused(TypeError, "0.weight is a DTensor placed as S.*1.*no rank has whole", [by_hand(own, Shard(1))] * 2)
    refused(ValueError, "rank 1 has the options", models, strength=0.4 if rank == 0 else 0.3)
    refused(ValueError, "rank 1 has the options", models if rank == 0 else [*models, shard(make("resnet"), own)])
    if rank == 0:
        refused(ValueError, r"models\[1\] differs from models\[0\]", [models[0], shard(make("convnext"), own)])
    else:
        refused(ExchangeError, "rank 0 failed with ValueError: models", models)
    late = FilterGrafting(wholes)
    for model in wholes:
        shard(model, own)
    with_error(TypeError, "weight is a DTensor.*shard them first", late.step)
    with_error(TypeError, "over a process group belongs to its ranks", lambda: copy.deepcopy(FilterGrafting(models)))


def layer_placed(layer, mesh, placement):
    layer.weight = nn.Parameter(distribute_tensor(layer.weight.detach(), mesh, [placement]))
    return layer


@case(1, 2, arguments=("_ends",), slow=True)
@case(1, 2, arguments=("_numbers",), slow=True)
@case(1, 2, arguments=("vector",), slow=True)
def a_rank_that_hangs(place, networks):
    """Before ranges or counts are reduced, or when it blends: the other raises within the time-out."""
    models = pair(networks, "convnext")[1]
    grafting = FilterGrafting(models, process_group=impatient_group())
    if dist.get_rank() == 1:
        setattr(grafting._networks[0], place, lambda *_: time.sleep(2 * SHORT.seconds))
        with pytest.raises(Exception, match=r"time|NoneType|lost"):
            grafting.step()
    else:
        loses_another_rank(grafting, *models)


@case(1, 2)
def a_rank_that_ends(networks):
    """When it has blended. The last case, for the rank is gone."""
    models = pair(networks, "convnext")[1]
    grafting = FilterGrafting(models, process_group=impatient_group())
    if dist.get_rank() == 1:
        grafting._networks[1].invalid = lambda *_: os._exit(0)
        grafting.step()
    loses_another_rank(grafting, *models)
