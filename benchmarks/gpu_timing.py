"""Times of one call on a GPU with a cold L2 cache: eager, the host's part of it, and replayed as a CUDA graph."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import torch

from benchmarks.memory import last_level_cache, make_buffer
from benchmarks.timing import Spread, no_garbage_collection, spread

Call = Callable[[], object]
SWEEP = 256 << 20
"""Bytes that are read before each call; at least four times the L2 cache."""


class GpuTimer:
    """On a CPU it works, too, to be tried: there are no graphs then.

    Args:
        device: of what is timed.
        repeats: timed calls; two more come first.
    """

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device = device
        self.repeats = repeats
        self.on_gpu = device.type == "cuda"
        self.buffer = make_buffer(max(SWEEP, 4 * last_level_cache(device)) if self.on_gpu else 1 << 20, device)
        self._copies: dict[int, Spread] = {}

    def sweep(self) -> None:
        """Fills the L2 cache by reading: lines that were written would be written back at the call's expense.

        It also keeps the device busy while the host queues what is timed.
        """
        self.buffer.amax()

    def eager(self, call: Call, prepare: Call | None = None) -> tuple[Spread, Spread]:
        """Seconds on an idle device, and seconds until the call returned to the host."""
        taken, host = [], []
        for _ in self._rounds():
            self._prepare(prepare)
            self._synchronize()
            begin = self._event()
            start = time.perf_counter()
            call()
            host.append(time.perf_counter() - start)
            taken.append(self._seconds_since(begin))
        return spread(taken[2:]), spread(host[2:])

    def graph(self, call: Call, prepare: Call | None = None) -> Spread | None:
        """Seconds of a replay; None on a CPU. ``call`` must have run before."""
        if not self.on_gpu:
            return None
        replay = captured(call)
        taken = []
        for _ in self._rounds():
            self._prepare(prepare)
            begin = self._event()
            replay()
            taken.append(self._seconds_since(begin))
        return spread(taken[2:])

    def copy(self, num_bytes: int) -> Spread:
        """Seconds of a copy within the device that reads half of the bytes and writes as many."""
        if num_bytes not in self._copies:
            source = make_buffer(num_bytes // 2, self.device).view(-1)[: max(num_bytes // 8, 1)]
            target = torch.empty_like(source)

            def copy() -> None:
                target.copy_(source)

            copy()
            self._copies[num_bytes] = self.graph(copy) or self.eager(copy)[0]
        return self._copies[num_bytes]

    def _prepare(self, prepare: Call | None) -> None:
        if prepare:
            prepare()
        self.sweep()

    def _rounds(self) -> Iterator[None]:
        with no_garbage_collection():
            for _ in range(self.repeats + 2):
                yield

    def _event(self) -> torch.cuda.Event | float:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds_since(self, begin: torch.cuda.Event | float) -> float:
        end = self._event()
        if isinstance(begin, float):
            return time.perf_counter() - begin
        self._synchronize()
        return float(begin.elapsed_time(end)) * 1e-3

    def _synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()


def captured(call: Call) -> Call:
    """``call`` as a CUDA graph. `torch.cuda.graph` would also empty torch's pool of memory, which costs more time."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        graph.capture_begin()
        try:
            results = call()
        except BaseException:
            with suppress(RuntimeError):  # which would hide why the capture failed
                graph.capture_end()
            raise
        graph.capture_end()
    torch.cuda.synchronize()
    return lambda: (graph.replay(), results)  # which keeps the graph's results
