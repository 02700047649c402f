"""One rank of test_replicas: every method under DistributedDataParallel, on data of its own."""

import warnings
from pathlib import Path

import torch
import torch._dynamo
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from tests.low_rank import networks
from weight_evolution import AsynchronousUpdate, FilterGrafting, LowRankProjection, WeightEvolution

STEPS = 3


def main(folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.save({name: case(rank) for name, case in CASES.items()}, Path(folder) / f"rank-{rank}.pt")
    dist.destroy_process_group()


def train(method, *, sync=False):
    """The parameters after each step of a method, and what it was refused with."""
    model = networks.branches()
    parallel = DistributedDataParallel(model)
    if sync:  # they train on GPUs only; here they keep their statistics, which are equal on all ranks
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    generator = torch.Generator().manual_seed(dist.get_rank())
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.05, momentum=0.9)
    step, made = None, {}
    parameters = []
    for _ in range(STEPS):
        for _ in range(2):
            for module in model.modules():
                if isinstance(module, nn.SyncBatchNorm):
                    module.eval()
            optimizer.zero_grad()
            parallel(torch.randn(4, 3, 9, 9, generator=generator)).square().mean().backward()
            optimizer.step()
        if step is None:
            step, made = method(parallel, optimizer)
        step()
        parameters.append({name: tensor.detach().clone() for name, tensor in model.named_parameters()})
    variance = model.last_norm.running_var.clone()
    return {"parameters": parameters, "variance": variance, **made}


def low_rank(**options):
    def make(parallel, optimizer):
        projection = LowRankProjection(parallel, optimizer=optimizer, **options)
        return projection.step, {"ranks": projection.ranks}

    return make


def evolution(parallel, optimizer):
    return WeightEvolution(parallel, conv_rate=0.9, local_ratio=0.9).step, {}


def asynchronous(parallel, optimizer):
    update = AsynchronousUpdate(optimizer, parallel, seed=4)
    return lambda: None, {"update": update.state_dict()}


def grafting(options, rank):
    parallel = DistributedDataParallel(networks.branches())
    before = {name: tensor.clone() for name, tensor in parallel.module.state_dict().items()}
    try:
        FilterGrafting(parallel, **options).step()
    except Exception as error:
        after = parallel.module.state_dict()
        unchanged = all(torch.equal(tensor, before[name]) for name, tensor in after.items())
        return {"error": f"{type(error).__name__}: {error}", "unchanged": unchanged}
    return {}


def grafted_list(rank):
    """Every rank holds all networks."""
    networks_here = [networks.branches(seed) for seed in range(2)]
    grafting = FilterGrafting([DistributedDataParallel(model) for model in networks_here], level="filter")
    for model in networks_here:
        model.stem_norm.running_mean += rank
    grafting.step()
    return {"parameters": [dict(model.named_parameters()) for model in networks_here]}


def grafted_pairs(rank):
    """Each network on two ranks."""
    groups = [dist.new_group([first, first + 1]) for first in range(0, dist.get_world_size(), 2)]
    parallel = DistributedDataParallel(networks.branches(rank // 2), process_group=groups[rank // 2])
    if len(groups) == 1:
        return {"parameters": []}
    grafting = FilterGrafting(parallel, ranks_per_network=2)
    parallel.module.stem_norm.running_mean += rank
    before = parallel.module.bare.weight.detach().clone()
    grafting.step()
    assert not torch.equal(parallel.module.bare.weight, before)
    return {"parameters": [dict(parallel.module.named_parameters())]}


def without_wrapper(rank):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        LowRankProjection(networks.branches())
    return {"warnings": [str(warning.message) for warning in caught]}


def copied(rank):
    import copy

    parallel = DistributedDataParallel(networks.branches())
    projection = LowRankProjection(parallel)
    try:
        copy.deepcopy((parallel.module, projection))
    except TypeError as error:
        return {"error": str(error)}
    return {}


CASES = {
    "low-rank": lambda rank: train(low_rank()),
    "low-rank, SyncBatchNorm": lambda rank: train(low_rank(), sync=True),
    "low-rank, budget": lambda rank: train(low_rank(budget=0.5, input_size=(3, 9, 9))),
    "low-rank, reset": lambda rank: train(low_rank(optimizer_state="reset")),
    "evolution": lambda rank: train(evolution),
    "evolution, SyncBatchNorm": lambda rank: train(evolution, sync=True),
    "asynchronous": lambda rank: train(asynchronous),
    "asynchronous, SyncBatchNorm": lambda rank: train(asynchronous, sync=True),
    "grafting": lambda rank: grafting({}, rank),
    "grafting, by filter": lambda rank: grafting({"level": "filter"}, rank),
    "grafting, wrong count": lambda rank: grafting({"ranks_per_network": 1}, rank),
    "grafting, all networks on every rank": grafted_list,
    "grafting, two ranks a network": grafted_pairs,
    "without wrapper": without_wrapper,
    "copied": copied,
}
