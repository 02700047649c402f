"""Low-rank projection of models that are spread over gloo processes on loopback; test_gpu.py has one rank over NCCL."""

import pytest

from tests.processes import run_ranks
from tests.sharding import low_rank_worker
from tests.sharding.low_rank_faults_worker import TIMEOUT
from tests.sharding.test_faults import check_that_others_say_so
from tests.sharding.test_sharded_models import check, run
from tests.sharding.worker import names

pytestmark = pytest.mark.xdist_group("low-rank shards")


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Number of ranks -> what each found; one start for each number."""
    cache = {}

    def get(ranks):
        if ranks not in cache:
            cache[ranks] = run(ranks, tmp_path_factory.mktemp("ranks"), "tests.sharding.low_rank_worker")
        return cache[ranks]

    return get


def on(ranks):
    """Names of the cases that so many ranks run."""
    return names(low_rank_worker.CASES, ranks, low_rank_worker.STARTS, 4)


@pytest.mark.parametrize("name", on(2))
def test_it_is_as_in_one_process(name, outcomes):
    check(outcomes(2), name)


@pytest.mark.slow
@pytest.mark.parametrize("name", on(4))
def test_it_is_as_in_one_process_on_four_ranks(name, outcomes):
    check(outcomes(4), name)


@pytest.mark.slow
@pytest.mark.parametrize("name", on(8))
def test_it_is_as_in_one_process_on_eight_ranks(name, outcomes):
    check(outcomes(8), name)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["look", "to_owner", "_solve", "rows_of"])
def test_a_rank_is_lost_in_a_step(tmp_path, where):
    """It ends or hangs: the others say so within the group's time-out, and have changed nothing."""
    done = run_ranks(4, "tests.sharding.low_rank_faults_worker", tmp_path, where)
    assert done.returncode == 0, done.stderr
    check_that_others_say_so(tmp_path, TIMEOUT)
