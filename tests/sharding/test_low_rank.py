"""Low-rank projection of models that are spread over gloo processes on loopback; NCCL needs GPUs and is not tested."""

import pytest
import torch

from tests.processes import run_ranks
from tests.sharding import low_rank_worker

pytestmark = pytest.mark.xdist_group("low-rank shards")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Number of ranks -> what each found; one start for each number."""
    cache = {}

    def get(ranks):
        if ranks not in cache:
            folder = tmp_path_factory.mktemp("ranks")
            done = run_ranks(ranks, "tests.sharding.low_rank_worker", folder)
            assert done.returncode == 0, done.stderr
            cache[ranks] = [torch.load(folder / f"rank-{rank}.pt", weights_only=True) for rank in range(ranks)]
        return cache[ranks]

    return get


def check(outcomes, name):
    done = [outcome[name] for outcome in outcomes]
    assert "done" in done
    assert set(done) <= {"done", None}, "\n".join(filter(None, done))


def on_at_most(ranks):
    return [name for name, (_, mesh, _) in low_rank_worker.CASES.items() if mesh == "hsdp" or mesh <= ranks]


@pytest.mark.parametrize("name", on_at_most(2))
def test_it_is_as_in_one_process(name, outcomes):
    check(outcomes(2), name)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [4, 8])
@pytest.mark.parametrize("name", low_rank_worker.CASES)
def test_it_is_as_in_one_process_on_more_ranks(name, ranks, outcomes):
    if name in on_at_most(ranks):
        check(outcomes(ranks), name)
