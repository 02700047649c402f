"""Timing: implementations take turns, so that what disturbs the machine disturbs all of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

import torch

from benchmarks.memory import Clock


class Contestant(NamedTuple):
    """Something to time; ``active`` is entered around each call, outside of what is timed."""

    name: str
    active: Callable[[], AbstractContextManager[None]]
    call: Callable[[], object]


class Spread(NamedTuple):
    """Median and 20th and 80th percentile."""

    median: float
    p20: float
    p80: float


def clock_for(device: torch.device) -> Clock:
    """Wall time on a CPU, events on a CUDA device."""
    return _cuda_seconds if device.type == "cuda" else _cpu_seconds


def _cpu_seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) * 1e-9


def _cuda_seconds(call: Callable[[], object]) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) * 1e-3


def take_turns(
    contestants: Sequence[Contestant], prepare: Callable[[], object], clock: Clock, repeats: int
) -> dict[str, list[float]]:
    """Seconds of every contestant in each of ``repeats`` rounds: A B C, B C A, ... `prepare` runs before each call.

    One round more runs first, untimed.
    """
    times: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    gc.collect()
    with no_garbage_collection():
        for turn in range(repeats + 1):
            first = turn % len(contestants)
            for contestant in (*contestants[first:], *contestants[:first]):
                prepare()
                with contestant.active():
                    seconds = clock(contestant.call)
                if turn:
                    times[contestant.name].append(seconds)
    return times


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Around what is timed."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    levels = torch.tensor((0.5, 0.2, 0.8), dtype=torch.float64)
    return Spread(*torch.tensor(values, dtype=torch.float64).quantile(levels).tolist())


def ratios(baseline: Sequence[float], times: Sequence[float]) -> Spread:
    """How many times faster than the baseline, round by round."""
    return spread([base / own for base, own in zip(baseline, times, strict=True)])
