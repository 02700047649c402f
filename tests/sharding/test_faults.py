"""A rank that ends or hangs: the others say so within the group's time-out, and have changed nothing."""

import pytest

from tests.processes import run_ranks
from tests.sharding.faults_worker import TIMEOUT


@pytest.mark.parametrize("collective", ["first", pytest.param("second", marks=pytest.mark.slow)])
def test_a_rank_is_lost_in_a_step(tmp_path, collective):
    done = run_ranks(4, "tests.sharding.faults_worker", tmp_path, collective)
    assert done.returncode == 0, done.stderr
    check_that_others_say_so(tmp_path, TIMEOUT)


def check_that_others_say_so(folder, timeout):
    for rank in (0, 2):
        seconds, error = (folder / f"rank-{rank}").read_text(encoding="utf-8").split(" ", 1)
        assert float(seconds) < 2 * timeout.seconds
        assert "did not take part in the step" in error
        assert "nothing was changed on this rank" in error
