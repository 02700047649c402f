"""One rank of test_ddp: trains with both forms on its own data, saves its weights and what it drew."""

from pathlib import Path

import torch
import torch._dynamo
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.asynchronous.twins import BATCHES, make_net, snapshot
from weight_evolution import AsynchronousSGD, AsynchronousUpdate


def main(folder: str) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(100 + rank)  # ranks need not share the global generator
    torch.rand(rank + 1)
    result = {}
    for form in ("hook", "sgd"):
        model = make_net()
        parallel = DistributedDataParallel(model)
        if form == "hook":
            optimizer = torch.optim.AdamW(parallel.parameters(), lr=0.01)
            source = AsynchronousUpdate(optimizer, parallel, seed=11)
        else:
            source = optimizer = AsynchronousSGD(parallel.parameters(), lr=0.1, momentum=0.9, model=parallel, seed=11)
        drawn = []
        for images, targets in BATCHES:
            optimizer.zero_grad()
            own = slice(rank, None, 2)
            torch.nn.functional.cross_entropy(parallel(images[own]), targets[own]).backward()
            drawn.append(source.selection())
            optimizer.step()
        result[form] = {"weights": snapshot(model), "drawn": drawn, "state": source.state_dict()}
    result["sgd"]["state"] = result["sgd"]["state"]["asynchronous"]
    torch.save(result, Path(folder) / f"rank-{rank}.pt")
    dist.destroy_process_group()
