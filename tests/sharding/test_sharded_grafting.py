"""Networks that are spread over gloo processes graft as in one process; test_gpu.py has one rank over NCCL."""

from functools import cache

import pytest

from tests.sharding import grafting_worker, side_by_side_worker
from tests.sharding.test_sharded_models import run


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """A start -> what each rank found; a parametrized fixture would be made anew for every test."""

    @cache
    def of(start):
        worker, ranks, slow = start
        names = grafting_worker.names(WORKERS[worker], ranks, slow)
        return run(ranks, tmp_path_factory.mktemp("ranks"), f"tests.sharding.{worker}", *names)

    return of


pytestmark = pytest.mark.xdist_group("sharded grafting")

WORKERS = {"grafting_worker": grafting_worker.CASES, "side_by_side_worker": side_by_side_worker.CASES}
STARTS = [
    (worker, ranks, slow)
    for worker in WORKERS
    for ranks, slow in [(2, False), (2, True), (4, False), (4, True), (8, True)]
]
"""Of so many ranks each, with the slow cases or the others."""
CASES = [
    pytest.param(start, name, marks=[pytest.mark.slow] if start[2] else [])
    for start in STARTS
    for name in grafting_worker.names(WORKERS[start[0]], *start[1:])
]


@pytest.mark.parametrize(("start", "name"), CASES)
def test_it_is_as_in_one_process(start, name, outcomes):
    done = [outcome[name] for outcome in outcomes(start)]
    lost = {"ended"} if "that_ends" in name else set()
    assert set(done) == {"done"} | lost, "\n".join(done)
