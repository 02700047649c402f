"""A sample of the random programs, and faults that they must find; ``make hostile`` runs 10,000 calls."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run.py")

HALF_CHANGED = """
import torch, weight_evolution
def step(self, epoch=None):
    with torch.no_grad():
        next(self._model.parameters()).add_(1)
    raise ValueError("the step is refused when a weight is written")
weight_evolution.WeightEvolution.step = step
"""
UNCLEAR = """
import weight_evolution
weight_evolution.filter_overlap = lambda model: {}["weight"]
weight_evolution.filter_overlap.__code__ = weight_evolution.filter_overlap.__code__.replace(
    co_filename=weight_evolution.__file__
)
"""
DRAWS = """
import torch, weight_evolution
make = weight_evolution.LowRankProjection.__init__
def draw(self, *args, **options):
    torch.rand(1)
    make(self, *args, **options)
weight_evolution.LowRankProjection.__init__ = draw
"""
CRASHES = """
import os, weight_evolution
weight_evolution.WeightEvolution.step = lambda self, epoch=None: os.abort()
"""
HANGS = """
import time, weight_evolution
weight_evolution.WeightEvolution.step = lambda self, epoch=None: time.sleep(600)
"""


def run(*arguments, fault="", folder=None):
    """The program in a process of its own, whose Python is broken by ``fault`` as it starts."""
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    if fault:
        (folder / "sitecustomize.py").write_text(fault)
        paths = [str(folder), *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    command = [sys.executable, str(RUN), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_a_sample_keeps_the_promises():
    result = run("--seed", 100_000, "--programs", 18)
    assert result.returncode == 0, result.stdout + result.stderr
    returned, refused = map(int, re.search(r"in all: (\d+) calls returned, (\d+) refused", result.stdout).groups())
    assert returned + refused == 18 * 12
    assert returned > refused > 20


@pytest.mark.parametrize(
    ("fault", "finding"),
    [
        (HALF_CHANGED, r"step, which raised: 0:\S+ changed"),
        (UNCLEAR, r"look: KeyError is no error for a user"),
        (DRAWS, r"make_projection, which \w+: random state changed"),
    ],
)
def test_a_broken_promise_is_found(fault, finding, tmp_path):
    result = run("--programs", 12, "--here", fault=fault, folder=tmp_path)
    assert result.returncode == 1, result.stdout + result.stderr
    assert re.search(f"FOUND\nseed \\d+\n(.*\n)*  {finding}", result.stdout)


@pytest.mark.parametrize(("fault", "trace"), [(CRASHES, "Aborted"), (HANGS, "Timeout")])
def test_a_crash_and_a_hang_are_found_and_the_next_program_runs(fault, trace, tmp_path):
    result = run("--programs", 4, "--limit", 6, fault=fault, folder=tmp_path)
    assert result.returncode == 1
    seeds = [int(seed) for seed in re.findall(r"DIED OR HUNG, status -?\d+\nseed (\d+)\n", result.stdout)]
    assert seeds
    assert seeds == sorted(set(seeds))
    assert trace in result.stdout
    last = result.stdout.splitlines()[-1]
    assert re.fullmatch(rf"in all: \d+ calls returned, \d+ refused, {len(seeds)} findings", last)
