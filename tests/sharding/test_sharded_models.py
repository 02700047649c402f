"""Models that are spread over gloo processes on loopback; test_gpu.py has one rank over NCCL."""

import pytest
import torch

from tests.processes import run_ranks
from tests.sharding import worker


def run(ranks, folder, module="tests.sharding.worker", *arguments):
    """What each rank has found, as the worker leaves it in the folder."""
    done = run_ranks(ranks, module, folder, *arguments)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(ranks)]


@pytest.fixture(scope="module")
def four_ranks(tmp_path_factory):
    return run(4, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def eight_ranks(tmp_path_factory):
    return run(8, tmp_path_factory.mktemp("ranks"))


def check(outcomes, name):
    done = [outcome[name] for outcome in outcomes]
    assert "done" in done
    assert set(done) <= {"done", None}, "\n".join(filter(None, done))


@pytest.mark.parametrize("name", worker.names(worker.CASES, 4, worker.STARTS, 8))
def test_it_is_as_in_one_process(name, four_ranks):
    check(four_ranks, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", worker.names(worker.CASES, 8, worker.STARTS, 8))
def test_it_is_as_in_one_process_on_eight_ranks(name, eight_ranks):
    check(eight_ranks, name)
