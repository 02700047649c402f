"""One rank of test_low_rank: its neighbour ends or hangs in the middle of a step.

Ranks 0 and 1 are a group in which 1 ends, ranks 2 and 3 one in which 3 hangs.
"""

import os
import time
from datetime import timedelta
from pathlib import Path
from unittest.mock import patch

import torch
import torch._dynamo
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from tests.sharding.networks import make, shard
from tests.sharding.worker import assert_equal
from weight_evolution import ExchangeError, LowRankProjection
from weight_evolution.low_rank.layers import Layers
from weight_evolution.low_rank.sharded_layer import ShardedLayer
from weight_evolution.low_rank.sharded_step import ShardedStep

TIMEOUT = timedelta(seconds=6)
OWNERS = {"look": Layers, "to_owner": ShardedLayer, "_solve": ShardedStep, "rows_of": ShardedLayer}
"""Each before another collective of a step."""


def main(folder, where):
    """``where``: the method in which the neighbour fails."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=TIMEOUT)
    rank, folder = dist.get_rank(), Path(folder)
    groups = [dist.new_group(ranks, timeout=TIMEOUT) for ranks in ([0, 1], [2, 3])]
    model = shard(make("resnet"), DeviceMesh.from_group(groups[rank // 2], "cpu"))
    projection = LowRankProjection(model)

    def fail(*_):
        if rank == 3:
            time.sleep(3 * TIMEOUT.seconds)
        os._exit(0)

    before = {name: parameter.to_local().clone() for name, parameter in model.named_parameters()}
    state = repr(projection.state_dict())
    start = time.monotonic()
    try:
        if rank % 2:
            with patch.object(OWNERS[where], where, fail):
                projection.step()
        projection.step()
    except ExchangeError as error:
        assert_equal(before, {name: parameter.to_local() for name, parameter in model.named_parameters()})
        assert repr(projection.state_dict()) == state
        (folder / f"rank-{rank}").write_text(f"{time.monotonic() - start} {error}", encoding="utf-8")
    os._exit(0)  # the group is broken, so do not wait for it
