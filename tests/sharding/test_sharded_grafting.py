"""Networks that are each spread over gloo processes graft as in one process; NCCL needs GPUs and is not tested."""

import pytest
import torch

from tests.processes import run_ranks
from tests.sharding import grafting_worker


def run(ranks, folder):
    done = run_ranks(ranks, "tests.sharding.grafting_worker", folder)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(ranks)]


@pytest.fixture(scope="module")
def four_ranks(tmp_path_factory):
    return run(4, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def eight_ranks(tmp_path_factory):
    return run(8, tmp_path_factory.mktemp("ranks"))


def cases(ranks):
    return [name for name, (_, shape, _) in grafting_worker.CASES.items() if torch.Size(shape).numel() == ranks]


def check(outcomes, name):
    done = [outcome[name] for outcome in outcomes]
    lost = {"ended"} if "that_ends" in name else set()
    assert set(done) == {"done"} | lost, "\n".join(done)


@pytest.mark.parametrize("name", cases(4))
def test_it_is_as_in_one_process(name, four_ranks):
    check(four_ranks, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", cases(8))
def test_it_is_as_in_one_process_on_eight_ranks(name, eight_ranks):
    check(eight_ranks, name)
