"""Weights of which every rank has some input channels (tensor parallelism by rows), over gloo processes."""

import pytest

from tests.sharding import partial_worker
from tests.sharding.test_sharded_models import check, run
from tests.sharding.worker import names

WORKER = "tests.sharding.partial_worker"


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    return run(2, tmp_path_factory.mktemp("ranks"), WORKER)


@pytest.fixture(scope="module")
def four_ranks(tmp_path_factory):
    return run(4, tmp_path_factory.mktemp("ranks"), WORKER)


@pytest.mark.parametrize("name", names(partial_worker.CASES, 2, partial_worker.STARTS, 4))
def test_it_is_as_in_one_process(name, two_ranks):
    check(two_ranks, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", names(partial_worker.CASES, 4, partial_worker.STARTS, 4))
def test_it_is_as_in_one_process_on_four_ranks(name, four_ranks):
    check(four_ranks, name)
