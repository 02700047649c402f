"""Durations of the single kernels of a call, as CUPTI records them for torch.profiler."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

LABEL = "weight-evolution campaign"
DEVICE_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
LAUNCHES = ("cuda_runtime", "cuda_driver")
"""Categories of a trace's events."""


def kernel_times(call: Callable[[], object], prepare: Callable[[], object], repeats: int) -> dict[str, Any]:
    """Profiles ``call`` ``repeats`` times on an idle device; see `kernels_in`. Without a GPU there are no kernels."""
    on_gpu = torch.cuda.is_available()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]

    def wait() -> None:
        if on_gpu:
            torch.cuda.synchronize()

    with profile(activities=activities) as profiler:
        for _ in range(repeats):
            prepare()
            wait()
            with record_function(LABEL):
                call()
                wait()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return kernels_in(json.loads(path.read_text(errors="replace")))


def kernels_in(trace: dict[str, Any]) -> dict[str, Any]:
    """What ran on the device during the calls of a trace.

    Of calls that ran different kernels, those count that ran the most frequent sequence.

    Returns:
        calls; span_us: median from the first kernel's begin to the last one's end; sum_us: median sum of durations;
        kernels: in order, with name, median and least duration, grid, block, registers and shared memory.
    """
    events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    windows = [
        (event["ts"], event["ts"] + event["dur"])
        for event in events
        if event.get("cat") == "user_annotation" and event["name"] == LABEL
    ]
    launched = {
        event["args"]["correlation"]: event["ts"]
        for event in events
        if event.get("cat") in LAUNCHES and "correlation" in event.get("args", {})
    }
    work = sorted((event for event in events if event.get("cat") in DEVICE_WORK), key=lambda event: event["ts"])
    # The device's clock is not quite the host's, so the launch counts where it was recorded.
    begun = [launched.get(event.get("args", {}).get("correlation"), event["ts"]) for event in work]
    calls = [[event for event, at in zip(work, begun, strict=True) if begin <= at <= end] for begin, end in windows]
    sequences = Counter(tuple(event["name"] for event in call) for call in calls if call)
    if not sequences:
        return {"calls": 0, "kernels": []}
    usual = sequences.most_common(1)[0][0]
    calls = [call for call in calls if tuple(event["name"] for event in call) == usual]
    spans = [call[-1]["ts"] + call[-1]["dur"] - call[0]["ts"] for call in calls]
    return {
        "calls": len(calls),
        "span_us": round(statistics.median(spans), 3),
        "sum_us": round(statistics.median(sum(event["dur"] for event in call) for call in calls), 3),
        "kernels": [_summary(list(same)) for same in zip(*calls, strict=True)],
    }


def _summary(same: list[dict[str, Any]]) -> dict[str, Any]:
    durations = [event["dur"] for event in same]
    arguments = same[0].get("args", {})
    chosen = {key: arguments.get(name) for key, name in ARGUMENTS.items() if name in arguments}
    found = {"name": same[0]["name"][:120], "us": round(statistics.median(durations), 3)}
    return found | {"least_us": round(min(durations), 3)} | chosen


ARGUMENTS = {
    "grid": "grid",
    "block": "block",
    "registers": "registers per thread",
    "shared_bytes": "shared memory",
    "occupancy_percent": "est. achieved occupancy %",
}
