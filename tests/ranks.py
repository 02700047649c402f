"""Ranks of a process group, in processes that are forked from one that has imported all: one import of PyTorch.

    python -m tests.ranks PROCESSES MODULE [argument ...]

Runs ``MODULE.main(*arguments)`` in each, with the variables that ``torch.distributed.init_process_group`` reads. Rank
by rank as under torchrun, but one that fails does not end the others. The module imports ``torch._dynamo`` if its ranks
use DistributedDataParallel or step an optimizer, of which the first in each rank would import it.
"""

import os
import sys
import traceback
from importlib import import_module

from torch.distributed import TCPStore


def main(processes, module, *arguments):
    """Exit status: that of the last rank that failed, or 0."""
    run = import_module(module).main
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": processes}
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}  # the store is here, not in rank 0, which may end first
    # They start together: the thread of the store may hold a lock, which a later fork would copy as held.
    start = os.pipe()
    children = [_fork(rank, run, arguments, start) for rank in range(int(processes))]
    os.close(start[1])
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


def _fork(rank, run, arguments, start):
    if child := os.fork():
        return child
    os.close(start[1])
    os.read(start[0], 1)  # the end of the pipe, once nobody can write to it
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    status = 1
    try:
        run(*arguments)
        status = 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
