"""Verifies and times every operation on one network after the other."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks import memory, released, results
from benchmarks.baselines import Backend, Implementation, implementations
from benchmarks.case import Case
from benchmarks.memory import Bandwidth
from benchmarks.results import Row
from benchmarks.timing import Contestant, clock_for, ratios, spread, take_turns
from benchmarks.verify import verify

RATES = (results.BAR_RATE, results.FLOOR_RATE)
"""The published rates for CIFAR and for ImageNet; the second for whole steps only."""
BUFFER = 256 << 20
"""Bytes read to measure memory, and to sweep the cache; at least eight times the last-level cache."""
PAUSE = 0.01
"""Seconds before each call. PyTorch's threads spin for several milliseconds after their last work, on the cores that
are timed next. The pause is spent busy, because a processor that slept starts slowly."""


class Bench:
    """All that one run shares: device, implementations, clock, the big buffer."""

    def __init__(self, device: torch.device, repeats: int, quick: bool) -> None:
        self.device = device
        self.repeats = repeats
        self.clock = clock_for(device)
        self.cache = memory.last_level_cache(device)
        self.buffer = memory.make_buffer(BUFFER >> 3 if quick else max(BUFFER, 8 * self.cache), device)
        self.implementations, self.skipped = implementations(device)
        self.models: dict[str, dict[str, Any]] = {}

    def run(self, model: str, program: released.ReleasedProgram | None) -> Iterator[Row]:
        """Verifies, then times, every operation on one network.

        Raises:
            WrongResultError: an implementation differs from the reference.
        """
        case = Case(model, device=self.device)
        # Restoring leaves both the weights and their copy in the cache.
        in_cache = 2 * case.weight_bytes <= self.cache
        self.models[model] = {
            "convs": len(case.convs),
            "filters": case.bank.num_filters,
            "weight_bytes": case.weight_bytes,
            "fits_in_cache": in_cache,
            "replaced_share": {},
        }
        buffer = memory.make_buffer(case.weight_bytes, self.device) if in_cache else self.buffer
        bandwidth = memory.measure(buffer, self.clock, self.repeats)

        rows = [*self._operations(model, case, in_cache)]
        for rate, norms, op in ((RATES[1], False, "step"), (RATES[0], True, "step+norm")):
            rows += self._step(model, Case(model, rate, norms=norms, device=self.device), op, in_cache)
        if program:
            case = Case(model, RATES[0], norms=True, rule="released", device=self.device)
            rows += self._step(model, case, "step+norm released", in_cache)
            rows.append(self._released(model, case, program, rows))

        bandwidth = memory.best(bandwidth, memory.measure(buffer, self.clock, self.repeats))
        yield from self._finish(model, bandwidth, rows)

    def _operations(self, model: str, case: Case, in_cache: bool) -> list[Row]:
        self._verify(case)
        importance, donor = self._reference_step(case)
        self._note_replaced(model, case, donor, results.BAR_RATE)
        crossover_bytes = case.crossover_bytes(donor)
        operations: dict[str, tuple[int, Callable[[Implementation], object]]] = {
            "importance": (case.weight_bytes, lambda x: x.importance(case)),
            "match": (8 * case.bank.num_filters, lambda x: x.match(case, importance)),
            "crossover": (crossover_bytes, lambda x: x.crossover(case, donor)),
            "step": (case.weight_bytes + crossover_bytes, lambda x: x.step(case)),
        }
        return [
            row
            for op, (num_bytes, call) in operations.items()
            for row in self._time(model, case, op, num_bytes, call, in_cache)
        ]

    def _step(self, model: str, case: Case, op: str, in_cache: bool) -> list[Row]:
        self._verify(case)
        donor = self._reference_step(case)[1]
        if op == "step":
            self._note_replaced(model, case, donor, case.rates[0])
        num_bytes = case.weight_bytes + case.crossover_bytes(donor)
        return self._time(model, case, op, num_bytes, lambda x: x.step(case), in_cache)

    def _verify(self, case: Case) -> None:
        for implementation in self.implementations:
            verify(implementation, case)

    def _reference_step(self, case: Case) -> tuple[Tensor, Tensor]:
        reference = Backend("torch")
        with reference.active():
            importance, donor = reference.step(case)
        case.restore()
        return importance, donor

    def _note_replaced(self, model: str, case: Case, donor: Tensor, rate: float) -> None:
        share = float((donor >= 0).double().mean())
        self.models[model]["replaced_share"][f"{rate:g}"] = share
        print(f"{model}: {case.bank.num_filters} filters, {share:.1%} replaced at rate {rate:g}", file=sys.stderr)

    def _time(
        self,
        model: str,
        case: Case,
        op: str,
        num_bytes: int,
        call: Callable[[Implementation], object],
        in_cache: bool,
    ) -> list[Row]:
        def prepare() -> None:
            case.restore()
            if not in_cache:
                self.buffer.amax()
            _stay_busy(PAUSE)

        @contextmanager
        def active(implementation: Implementation) -> Iterator[None]:
            with implementation.active():
                if in_cache:
                    # Warm: code and weights in the cache, as in any loop that times one function.
                    call(implementation)
                    threads = torch.get_num_threads()
                    torch.set_num_threads(1)  # so that no other thread spins while the next call is timed
                    case.restore()
                    torch.set_num_threads(threads)
                yield

        contestants = [Contestant(x.name, partial(active, x), partial(call, x)) for x in self.implementations]
        times = take_turns(contestants, prepare, self.clock, self.repeats)
        return [
            Row(
                model,
                op,
                None if op == "importance" else case.rates[0],
                name,
                self.repeats,
                spread(seconds),
                ratios(times["per_layer"], seconds),
                ratios(times["torch"], seconds),
                num_bytes,
                num_bytes / spread(seconds).median / 1e9,
                None,
                None,
            )
            for name, seconds in times.items()
        ]

    def _released(self, model: str, case: Case, program: released.ReleasedProgram, rows: list[Row]) -> Row:
        seconds: list[float] = []
        while not seconds or (len(seconds) < 3 and seconds[0] < 5):
            case.restore()
            seconds.append(self.clock(program.step(case)))
            released.verify(case)
        taken = spread(seconds)
        same = {row.backend: row for row in rows if row.op == "step+norm released"}
        per_layer, torch_ = (ratios([same[name].seconds.median], [taken.median]) for name in ("per_layer", "torch"))
        num_bytes = same["torch"].bytes_moved
        gb_per_s = num_bytes / taken.median / 1e9
        op, rate = "step+norm released", case.rates[0]
        return Row(
            model, op, rate, results.RELEASED, len(seconds), taken, per_layer, torch_, num_bytes, gb_per_s, None, None
        )

    def _finish(self, model: str, bandwidth: Bandwidth, rows: list[Row]) -> Iterator[Row]:
        """The rows with their shares of the floor, after the rows of the floor itself."""
        # A backend that reads faster than PyTorch's reductions sets the floor.
        read, reader = bandwidth.read, bandwidth.reader
        for row in rows:
            if row.op == "importance" and row.gb_per_s * 1e9 > read:
                read, reader = row.gb_per_s * 1e9, f"importance of {row.backend}"
        self.models[model]["read_gb_per_s"] = read / 1e9
        self.models[model]["reader"] = reader
        self.models[model]["buffer_bytes"] = bandwidth.num_bytes
        yield self._bandwidth_row(model, "read", bandwidth.reader, bandwidth.num_bytes, bandwidth.read)
        yield self._bandwidth_row(model, "memcpy", "copy_", bandwidth.num_bytes, bandwidth.copy)
        conv_bytes = self.models[model]["weight_bytes"]
        for row in rows:
            if row.op != "match":
                row.floor_share = row.bytes_moved / read / row.seconds.median
            if row.op in ("importance", "step"):
                row.read_floor_share = conv_bytes / read / row.seconds.median
            yield row

    def _bandwidth_row(self, model: str, op: str, how: str, num_bytes: int, rate: float) -> Row:
        return Row(
            model,
            op,
            None,
            how,
            self.repeats,
            spread([num_bytes / rate]),
            None,
            None,
            num_bytes,
            rate / 1e9,
            None,
            None,
        )


def _stay_busy(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass
