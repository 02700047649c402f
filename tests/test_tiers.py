"""Which tests a plain run leaves out: the hooks of conftest.py on a small file, and the choice alone."""

from itertools import product

import pytest
import torch

from tests import tiers

pytest_plugins = ["pytester"]

FILE = """
import pytest

@pytest.mark.slow
def test_slow(): pass

def test_plain(): pass

@pytest.mark.sampled(2)
@pytest.mark.parametrize("number", range(6))
def test_sampled(number): pass

@pytest.mark.parametrize("layout", range(5))
@pytest.mark.parametrize("dtype", ["single", "double"])
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_kernel(backend, dtype, layout): pass
"""


@pytest.fixture
def run(pytester, monkeypatch):
    """(has a GPU, *arguments, file) -> the tests of that file, which holds `FILE`, that a run takes."""
    pytester.makeconftest("from tests.conftest import pytest_addoption, pytest_collection_modifyitems")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def collected(gpu, *arguments, file="test_file.py"):
        pytester.path.joinpath(file).write_text(FILE)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        done = pytester.runpytest_inprocess("--collect-only", "-q", "-p", "no:cacheprovider", *arguments)
        return [line for line in done.outlines if "::" in line]

    return collected


def test_a_plain_run_takes_a_sample(run):
    found = run(False)
    assert found[:3] == [f"test_file.py::test_{test}" for test in ("plain", "sampled[0]", "sampled[5]")]
    assert sum("[torch" in test for test in found) == 10
    sample = [test for test in found if "[triton" in test]
    assert len(sample) == len(found) - 13 == tiers.CASES
    assert {test.split("-")[1] for test in sample} == {"single", "double"}
    assert len({test.split("-")[2] for test in sample}) == tiers.CASES


def test_a_file_that_the_interpreter_runs_is_sampled_whatever_the_backend(run):
    assert len(run(False, file="test_interpreted.py")) == 1 + 1 + 1


@pytest.mark.parametrize(
    ("gpu", "arguments", "number"),
    [
        (False, ["--all"], 28),
        (True, [], 28),
        (False, ["-k", "triton"], 10),
        (False, ["-k", "not triton"], 13),
        (False, ["-m", "slow"], 1),
        (False, ["test_file.py::test_slow"], 1),
    ],
    ids=str,
)
def test_what_is_named_is_taken(run, gpu, arguments, number):
    assert len(run(gpu, *arguments)) == number


def test_a_sample_shows_every_value():
    cases = [{"dtype": dtype, "layout": layout} for dtype, layout in product(range(4), range(4))]
    chosen = tiers.spread(cases, 4)
    for name in ("dtype", "layout"):
        assert {cases[place][name] for place in chosen} == set(range(4))


def test_samples_of_several_functions_show_every_value_together():
    cases = [{"dtype": dtype, "layout": layout} for dtype, layout in product(range(4), range(5))]
    seen = set()
    samples = [[cases[place] for place in tiers.spread(cases, 2, seen)] for _ in range(3)]
    for one, other in samples:
        assert not {*one.items()} & {*other.items()}
    for name, count in (("dtype", 4), ("layout", 5)):
        assert {case[name] for sample in samples for case in sample} == set(range(count))


def test_a_sample_of_one_parameter_is_spread():
    assert tiers.spread([{"mix": mix} for mix in range(28)], 4) == [0, 13, 20, 27]
    assert tiers.spread([{"mix": mix} for mix in range(3)], 4) == [0, 1, 2]
    assert tiers.spread([{}], 4) == [0]
