"""Outputs and scratch memory of the kernels are poisoned before they run; how much of a check a backend takes."""

from functools import partial

import pytest
from hypothesis import HealthCheck, settings
from torch.library import opcheck as check_operator

from tests import tiers


@pytest.fixture(autouse=True)
def poison(poisoned):
    """For all tests of this folder."""


@pytest.fixture
def examples(backend, request):
    """Hypothesis's settings; in a plain run few examples: the interpreter takes about a second for one."""
    plain = tiers.deselects(request.config)
    return settings(
        max_examples=(2 if plain else 8) if backend == "triton" else (15 if plain else 120),
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
        derandomize=True,
    )


@pytest.fixture
def opcheck(backend):
    """`torch.library.opcheck`: all of it for one backend; of another one, what it writes and what it returns."""
    if backend == "torch":
        return check_operator
    return partial(
        check_operator, test_utils=("test_schema",) if backend == "triton" else ("test_schema", "test_faketensor")
    )
