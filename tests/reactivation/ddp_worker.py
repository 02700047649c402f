"""One rank of test_ddp: trains on its own data, resets the same units, saves weights and optimizer state."""

from pathlib import Path

import torch
import torch._dynamo
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.asynchronous.twins import BATCHES, make_net, snapshot
from weight_evolution import UnitAdamW


def main(folder: str) -> None:
    dist.init_process_group("gloo")
    rank, model = dist.get_rank(), make_net()
    parallel = DistributedDataParallel(model)
    optimizer = UnitAdamW(parallel.parameters(), lr=0.01)
    for step, (images, targets) in enumerate(BATCHES):
        optimizer.zero_grad()
        own = slice(rank, None, 2)
        torch.nn.functional.cross_entropy(parallel(images[own]), targets[own]).backward()
        optimizer.step()
        if step == 1:
            optimizer.reset_units_(model.stem.weight, torch.arange(8) < 3)
    torch.save({"weights": snapshot(model), "state": optimizer.state_dict()}, Path(folder) / f"rank-{rank}.pt")
    dist.destroy_process_group()
