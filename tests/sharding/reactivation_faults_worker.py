"""One rank of test_sharded_reactivation: its neighbour ends or hangs in the middle of an acting step.

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

from tests.sharding.reactivation_worker import Run, images
from tests.sharding.worker import assert_equal
from weight_evolution import ExchangeError, UnitActivity
from weight_evolution.reactivation.sharded_step import ShardedUnitStep

TIMEOUT = timedelta(seconds=6)
OWNERS = {"averaged_over": UnitActivity, "_see": ShardedUnitStep, "_prepare": ShardedUnitStep}
"""Each before another collective of a step."""


def main(folder, where):
    """``where``: the method in which the neighbour fails."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=TIMEOUT)
    rank, folder = dist.get_rank(), Path(folder)
    groups = [dist.new_group(ranks, timeout=TIMEOUT) for ranks in ([0, 1], [2, 3])]
    run = Run(DeviceMesh.from_group(groups[rank // 2], "cpu"))
    run.go(1)
    run.model(images(1)).square().mean().backward()
    run.optimizer.step()

    def fail(*_):
        if rank == 3:
            time.sleep(3 * TIMEOUT.seconds)
        os._exit(0)

    before, state = held(run), repr(run.reactivation.state_dict())
    start = time.monotonic()
    try:
        if rank % 2:
            with patch.object(OWNERS[where], where, fail):
                run.reactivation.step()
        run.reactivation.step()
    except ExchangeError as error:
        assert_equal(before, held(run))
        assert repr(run.reactivation.state_dict()) == state
        (folder / f"rank-{rank}").write_text(f"{time.monotonic() - start} {error}", encoding="utf-8")
    os._exit(0)  # the group is broken, so do not wait for it


def held(run):
    """This rank's part of all weights and of the optimizer's state."""
    found = {name: parameter.to_local().clone() for name, parameter in run.model.named_parameters()}
    for i, entries in enumerate(run.optimizer.state.values()):
        found |= {f"{key} {i}": getattr(value, "_local_tensor", value).clone() for key, value in entries.items()}
    return found
