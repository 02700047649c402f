"""Networks that are each spread over gloo processes graft as in one process; NCCL needs GPUs and is not tested."""

import pytest
import torch

from tests.processes import run_ranks
from tests.sharding import grafting_worker


def run(ranks, slow, folder):
    done = run_ranks(ranks, "tests.sharding.grafting_worker", folder, *grafting_worker.names(ranks, slow))
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(ranks)]


@pytest.fixture(scope="module")
def outcomes(request, tmp_path_factory):
    """Of each rank; one start for each number of ranks, slow cases or others."""
    return run(*request.param, tmp_path_factory.mktemp("ranks"))


pytestmark = pytest.mark.xdist_group("sharded grafting")

CASES = [
    pytest.param((ranks, slow), name, marks=[pytest.mark.slow] if slow else [])
    for ranks, slow in [(4, False), (4, True), (8, True)]
    for name in grafting_worker.names(ranks, slow)
]


@pytest.mark.parametrize(("outcomes", "name"), CASES, indirect=["outcomes"])
def test_it_is_as_in_one_process(outcomes, name):
    done = [outcome[name] for outcome in outcomes]
    lost = {"ended"} if "that_ends" in name else set()
    assert set(done) == {"done"} | lost, "\n".join(done)
