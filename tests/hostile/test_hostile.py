"""A sample of the random programs, and faults that they must find; ``make hostile`` runs 10,000 calls."""

import os
import re

import pytest

from tests.processes import run_module

BROKEN_PROMISES = """
import sys
if "--here" in sys.orig_argv:
    import torch
    import weight_evolution as we

    def change_and_raise(self, epoch=None):
        with torch.no_grad():
            next(self._taking_part._model.parameters()).add_(1)
        raise ValueError("the step is refused when a weight is written")

    def draw_and_step(self, step=we.LowRankProjection.step):
        torch.rand(1)
        return step(self)

    def fail(model):
        return {}["weight"]

    we.WeightEvolution.step = change_and_raise
    we.LowRankProjection.step = draw_and_step
    we.filter_overlap = fail
    fail.__code__ = fail.__code__.replace(co_filename=we.__file__)
"""
CRASH_THEN_HANG = """
import sys
if "--here" in sys.orig_argv:
    import os, pathlib, time
    import weight_evolution as we
    crashed = pathlib.Path(__file__).with_name("crashed")

    def step(self, epoch=None):
        if crashed.exists():
            time.sleep(600)
        crashed.touch()
        os.abort()

    we.WeightEvolution.step = step
"""


def run(*arguments, fault="", folder=None):
    """The program in a process of its own; ``fault`` breaks the package where programs run."""
    paths = [os.environ.get("PYTHONPATH")]
    if fault:
        (folder / "sitecustomize.py").write_text(fault)
        paths.insert(0, str(folder))
    path = os.pathsep.join(filter(None, paths))
    return run_module("tests.hostile.run", *arguments, OMP_NUM_THREADS="1", PYTHONPATH=path)


def test_a_sample_keeps_the_promises():
    result = run("--seed", 100_000, "--programs", 8)
    assert result.returncode == 0, result.stdout + result.stderr
    returned, refused = map(int, re.search(r"in all: (\d+) calls returned, (\d+) refused", result.stdout).groups())
    assert returned + refused == 8 * 12
    assert returned > refused > 10


def test_broken_promises_are_found(tmp_path):
    result = run("--seed", 12, "--programs", 16, "--here", fault=BROKEN_PROMISES, folder=tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    for finding in (
        r"step, which raised: 0:\S+ changed",
        r"step, which \w+: random state changed",
        r"look: KeyError is no error for a user",
    ):
        assert re.search(rf"FOUND\nseed \d+\n(.*\n)*?  {finding}", result.stdout), (finding, result.stdout)


@pytest.mark.slow  # it waits for a hang
def test_a_crash_and_a_hang_are_found_with_their_seeds(tmp_path):
    # Both programs make a WeightEvolution and step it; others may do if the generator is changed.
    result = run("--seed", 20, "--programs", 2, "--limit", 10, fault=CRASH_THEN_HANG, folder=tmp_path)
    assert result.returncode == 1
    assert re.findall(r"DIED OR HUNG, status -?\d+\nseed (\d+)\n", result.stdout) == ["20", "21"]
    crash, hang = result.stdout.split("DIED OR HUNG")[1:]
    assert "Aborted" in crash
    assert "Timeout" in hang
    assert result.stdout.splitlines()[-1] == "in all: 0 calls returned, 0 refused, 2 findings"
