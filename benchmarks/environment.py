"""What a result depends on beside the code. Nothing that identifies a host or a user."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

import we_kernels as wk
from benchmarks.memory import last_level_cache

ROOT = Path(__file__).parents[1]


def describe(device: torch.device) -> dict[str, Any]:
    """Device, CPU model, versions, threads, load of the last minute, commit and date (UTC), ready for JSON."""
    info = wk.info()
    result: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": commit(),
        "device": device.type,
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2),
        "last_level_cache_bytes": last_level_cache(device),
        "versions": {
            "weight-evolution": wk.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "triton": info["triton"],
            "native extension": without_paths(info["native extension"]),
        },
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        result["gpu"] = properties.name
        result["versions"]["cuda"] = torch.version.cuda
        result["versions"]["driver"] = driver_version()
    return result


def driver_version() -> str:
    """Of the NVIDIA driver; "unknown" without its tool."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0].strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def commit() -> str:
    """Of the working tree, "-dirty" when it differs from the commit; "unknown" outside of a repository.

    The environment variable WE_COMMIT comes first: a copy of the tree need not have the repository.
    """
    if given := os.environ.get("WE_COMMIT"):
        return given
    command = ["git", "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def cpu_model() -> str:
    """As Linux names it, else the architecture."""
    try:
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        match = None
    return match[1].strip() if match else platform.machine()


def without_paths(text: str) -> str:
    """``text`` with absolute paths left out: import errors name them."""
    return re.sub(r"(?<![\w.])(?:[A-Za-z]:)?[/\\][^\s'\"():;,]+", "...", text)
