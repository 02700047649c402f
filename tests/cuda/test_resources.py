"""Every CUDA kernel compiles without warnings for sm_80, sm_90 and sm_100, and spills no registers."""

import shutil

import pytest

from tests.processes import run_module

KERNELS = {"importance", "threshold", "rank", "starvation", "match", "crossover", "match_and_cross"}


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_compiles_without_spills(capability):
    done = run_module("tests.cuda.resources", capability)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    compiled = [line.split()[0].removesuffix("_kernel") for line in done.stdout.splitlines()[1:] if line]
    assert sorted(compiled) == sorted(KERNELS)
