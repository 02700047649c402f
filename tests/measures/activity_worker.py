"""One rank of test_unit_activity: measures its own batches, saves what it is told of all."""

from pathlib import Path

import torch
import torch._dynamo
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.model import unit_networks
from weight_evolution import UnitActivity


def make_net():
    torch.manual_seed(0)
    return unit_networks.mlp()


def inputs_of(rank: int) -> list[torch.Tensor]:
    """Rank 0 has one batch of two examples, rank 1 two of three."""
    generator = torch.Generator().manual_seed(rank)
    return [torch.randn(2 + rank, 5, generator=generator) for _ in range(1 + rank)]


def main(folder: str) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model = DistributedDataParallel(make_net().eval())
    with UnitActivity(model) as activity:
        for x in inputs_of(rank):
            model(x)
    report = activity.report()
    found = {
        "all": report.activation,
        "batches": report.batches,
        "alone": activity.report(all_ranks=False).activation,
        "activations": activity.activations(all_ranks=True),
        "activations alone": activity.activations(),
    }
    with activity:  # a rank that sees nothing takes part
        if rank == 0:
            model(inputs_of(0)[0])
        found["of one"] = activity.activations(all_ranks=True)
        activity.clear()
        try:
            activity.activations(all_ranks=True)
        except RuntimeError as error:
            found["of none"] = str(error)
    torch.save(found, Path(folder) / f"rank-{rank}.pt")
    dist.destroy_process_group()
