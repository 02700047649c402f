"""Reactivation of models that are spread over gloo processes on loopback; test_gpu.py has one rank over NCCL."""

import pytest

from tests.processes import run_ranks
from tests.sharding import reactivation_worker
from tests.sharding.reactivation_faults_worker import TIMEOUT
from tests.sharding.test_faults import check_that_others_say_so
from tests.sharding.test_sharded_models import check, run

WORKER = "tests.sharding.reactivation_worker"
pytestmark = pytest.mark.xdist_group("sharded reactivation")


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    return run(2, tmp_path_factory.mktemp("ranks"), WORKER)


@pytest.fixture(scope="module")
def four_ranks(tmp_path_factory):
    return run(4, tmp_path_factory.mktemp("ranks"), WORKER)


TWO = [name for name, (_, mesh, _, slow) in reactivation_worker.CASES.items() if not slow and mesh != 4]


@pytest.mark.parametrize("name", TWO)
def test_it_is_as_in_one_process(name, two_ranks):
    check(two_ranks, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", reactivation_worker.CASES)
def test_it_is_as_in_one_process_on_four_ranks(name, four_ranks):
    check(four_ranks, name)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["averaged_over", "_see", "_prepare"])
def test_a_rank_is_lost_in_a_step(tmp_path, where):
    """It ends or hangs: the others say so within the group's time-out, and have changed nothing."""
    done = run_ranks(4, "tests.sharding.reactivation_faults_worker", tmp_path, where)
    assert done.returncode == 0, done.stderr
    check_that_others_say_so(tmp_path, TIMEOUT)
