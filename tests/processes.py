"""Child processes that import what is in this repository, installed or not."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def environment(**settings):
    """This process's environment with ``settings`` (None: without that variable) and our packages on PYTHONPATH."""
    changed = {name: value for name, value in {**os.environ, **settings}.items() if value is not None}
    paths = [str(ROOT), str(ROOT / "python"), changed.get("PYTHONPATH")]
    return changed | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


def run_module(module, *arguments, timeout=None, **settings):
    """The finished ``python -m module arguments``, run in the repository root with `environment` of ``settings``."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=environment(**settings), capture_output=True, text=True, timeout=timeout
    )


def run_ranks(processes, module, *arguments):
    """The finished ``main(*arguments)`` of a module in several processes with one thread each; see `tests.ranks`."""
    seconds = 120 + 60 * processes  # for all share the cores of one machine
    return run_module("tests.ranks", processes, module, *arguments, timeout=seconds, OMP_NUM_THREADS="1")


def torchrun(processes, module, *arguments):
    """The same with torchrun, which imports PyTorch in every process."""
    options = ["--standalone", f"--nproc-per-node={processes}", "-m"]
    return run_module("torch.distributed.run", *options, module, *arguments, timeout=240, OMP_NUM_THREADS="1")
