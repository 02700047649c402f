"""One rank of test_faults: its neighbour ends or hangs in the middle of a step.

Ranks 0 and 1 are a group in which 1 ends, ranks 2 and 3 one in which 3 hangs.
"""

import os
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch._dynamo
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

import we_kernels as wk
from tests.sharding.networks import make, shard
from tests.sharding.worker import MUCH, assert_equal
from weight_evolution import ExchangeError, WeightEvolution

TIMEOUT = timedelta(seconds=6)


def main(folder, collective):
    """``collective``: before which of a step's the neighbour fails: "first" or "second" all-gather."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=TIMEOUT)
    rank, folder = dist.get_rank(), Path(folder)
    groups = [dist.new_group(ranks, timeout=TIMEOUT) for ranks in ([0, 1], [2, 3])]
    pair = DeviceMesh.from_group(groups[rank // 2], "cpu")
    model = shard(make("resnet"), pair)
    calls = []

    def importance(bank):
        calls.append(bank)
        if rank % 2 and len(calls) == (1 if collective == "first" else 2):
            if rank == 1:
                os._exit(0)
            time.sleep(3 * TIMEOUT.seconds)
            os._exit(0)
        return wk.filter_importance(bank)

    evolution = WeightEvolution(model, **MUCH, importance=importance)
    before = {name: parameter.to_local().clone() for name, parameter in model.named_parameters()}
    state = evolution.state_dict()
    start = time.monotonic()
    try:
        evolution.step()
    except ExchangeError as error:
        assert_equal(before, {name: parameter.to_local() for name, parameter in model.named_parameters()})
        assert evolution.state_dict() == state
        (folder / f"rank-{rank}").write_text(f"{time.monotonic() - start} {error}", encoding="utf-8")
    os._exit(0)  # the group is broken, so do not wait for it
