"""Every CUDA kernel compiles without warnings for sm_80, sm_90 and sm_100, and spills no registers."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("resources.py")
KERNELS = {"importance", "threshold", "rank", "starvation", "match", "crossover", "match_and_cross"}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_compiles_without_spills(capability):
    done = subprocess.run([sys.executable, str(SCRIPT), str(capability)], capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    compiled = [line.split()[0].removesuffix("_kernel") for line in done.stdout.splitlines()[1:] if line]
    assert sorted(compiled) == sorted(KERNELS)
