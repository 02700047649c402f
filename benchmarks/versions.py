"""Journals what the results of a campaign depend on beside the code. A part of `gpu.py`; 3: there is no GPU."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks import environment
from benchmarks.journal import Journal

NO_GPU = 3


def main() -> int:
    """0, or `NO_GPU`."""
    journal = Journal(Path(sys.argv[1]))
    gpu = torch.cuda.is_available()
    described = environment.describe(torch.device("cuda" if gpu else "cpu"))
    described["versions"] |= {
        "nvcc": _last_line("nvcc", "--version"),
        "cmake": _last_line("cmake", "--version", line=0),
    }
    if gpu:
        properties = torch.cuda.get_device_properties(0)
        described["multiprocessors"] = properties.multi_processor_count
        described["memory_bytes"] = properties.total_memory
        described["capability"] = "".join(map(str, torch.cuda.get_device_capability()))
    tools = {name: shutil.which(name) is not None for name in ("nvcc", "cmake", "ninja", "compute-sanitizer")}
    journal.write("versions", **described, kernel=platform.release(), tools=tools)
    return 0 if gpu else NO_GPU


def _last_line(*command: str, line: int = -1) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.strip().splitlines()[line]
    except (OSError, subprocess.SubprocessError, IndexError):
        return "not found"


if __name__ == "__main__":
    sys.exit(main())
