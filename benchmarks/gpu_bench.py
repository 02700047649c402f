"""The suite for a GPU: whole steps, eager and in a CUDA graph, beside a copy of the same bytes and optimizers.

It also runs on a CPU, where there are no graphs: to be tried and tested.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from functools import partial

import released
import torch
from baselines import Backend, CompiledPerLayer, Implementation
from bench import RATES, Bench
from case import Case
from memory import make_buffer
from optimizers import bytes_of_a_step, optimizer_steps
from results import Row
from timing import Contestant, Spread, host_seconds, in_graph, queued_seconds, ratios, spread, take_turns
from verify import verify

BASELINE_REPEATS = 5
"""Of what takes milliseconds and waits for the device."""


class GpuBench(Bench):
    """`Bench` with the rows that matter on a GPU.

    Args:
        device, repeats, quick: see `Bench`.
        compiled: networks whose vectorised PyTorch is also measured through ``torch.compile``, which takes a minute.
    """

    def __init__(self, device: torch.device, repeats: int, quick: bool, compiled: list[str]) -> None:
        super().__init__(device, repeats, quick)
        self.compiled = compiled

    def run(
        self, model: str, program: released.ReleasedProgram | None, dtype: torch.dtype = torch.float32
    ) -> Iterator[Row]:
        """Verifies, then times, whole steps on one network.

        Raises:
            WrongResultError: an implementation differs from the reference.
        """
        yield from self._convolutions(model, dtype)
        self._free()
        yield from self._with_norms(model, dtype)
        self._free()
        if program and dtype == torch.float32:
            case = Case(model, RATES[0], norms=True, rule="released", device=self.device)
            rows = self._step(model, case, "step+norm released", in_cache=False)
            yield from (*rows, self._released(model, case, program, rows))

    def _convolutions(self, model: str, dtype: torch.dtype) -> Iterator[Row]:
        case = Case(model, RATES[0], device=self.device, dtype=dtype)
        self.models.setdefault(
            model, {"convs": len(case.convs), "filters": case.bank.num_filters, "replaced_share": {}}
        )
        self._verify(case)
        donor = self._reference_step(case)[1]
        self._note_replaced(model, case, donor, RATES[0])
        yield from self._rows(model, case, "importance", case.weight_bytes, [])
        baselines = [x for x in self.implementations if not _capturable(x)]
        if model in self.compiled and dtype == torch.float32:
            baselines.append(CompiledPerLayer())
            verify(baselines[-1], case)
        yield from self._rows(model, case, "step", case.weight_bytes + case.crossover_bytes(donor), baselines)
        yield from self._optimizers(model, case)

    def _with_norms(self, model: str, dtype: torch.dtype) -> Iterator[Row]:
        case = Case(model, RATES[0], norms=True, device=self.device, dtype=dtype)
        self._verify(case)
        num_bytes = case.weight_bytes + case.crossover_bytes(self._reference_step(case)[1])
        yield from self._rows(model, case, "step+norm", num_bytes, [])

    def _rows(
        self,
        model: str,
        case: Case,
        op: str,
        num_bytes: int,
        baselines: list[Implementation],
    ) -> Iterator[Row]:
        """The copy of as many bytes, the baselines (eager), and the backends."""

        def call(implementation: Implementation) -> object:
            return implementation.importance(case) if op == "importance" else implementation.step(case)

        dtype = str(case.weights[0].dtype).removeprefix("torch.")
        rate = None if op == "importance" else case.rates[0]
        floor = self._copy(num_bytes)

        def row(name: str, eager: list[float], graph: list[float] | None, host: list[float] | None) -> Row:
            taken = spread(eager)
            in_graph = spread(graph) if graph else None
            best = (in_graph or taken).median
            baseline = times.get("per_layer")
            return Row(
                model,
                op,
                rate,
                name,
                len(eager),
                taken,
                ratios([spread(baseline).median], [best]) if baseline else None,
                None,
                num_bytes,
                num_bytes / best / 1e9,
                None,
                floor.median / best,
                dtype,
                in_graph,
                spread(host) if host else None,
            )

        prepare = partial(self._prepare, case.restore)
        times: dict[str, list[float]] = {}
        contestants = [Contestant(x.name, x.active, partial(call, x)) for x in baselines]
        if contestants:
            times = take_turns(contestants, prepare, self.clock, min(self.repeats, BASELINE_REPEATS))
        yield row("copy", [floor.median], [floor.median] if self.device.type == "cuda" else None, None)
        for name, eager in times.items():
            yield row(name, eager, None, None)
        for implementation in filter(_capturable, self.implementations):
            once = partial(call, implementation)
            with implementation.active():
                yield row(implementation.name, *self._measure(implementation.name, once, prepare))

    def _measure(
        self, name: str, call: Callable[[], object], prepare: Callable[[], object]
    ) -> tuple[list[float], list[float] | None, list[float]]:
        """Eager, in a graph, and the host's part."""

        def turns(what: Callable[[], object], clock: Callable[[Callable[[], object]], float]) -> list[float]:
            return take_turns([Contestant(name, torch.no_grad, what)], prepare, clock, self.repeats)[name]

        eager, host = turns(call, self.clock), turns(call, host_seconds)
        replay = in_graph(call, self.device)
        return eager, turns(replay, queued_seconds) if replay else None, host

    def _optimizers(self, model: str, case: Case) -> Iterator[Row]:
        dtype = str(case.weights[0].dtype).removeprefix("torch.")
        for name, step in optimizer_steps(case.weights).items():
            eager, graph, host = self._measure(name, step, partial(self._prepare, None))
            in_graph = spread(graph) if graph else None
            moved, best = bytes_of_a_step(name, case.weights), (in_graph or spread(eager)).median
            speed = moved / best / 1e9
            yield Row(
                *(model, "optimizer step", None, name, len(eager), spread(eager), None, None, moved, speed),
                *(None, None, dtype, in_graph, spread(host)),
            )

    def _copy(self, num_bytes: int) -> Spread:
        """Seconds of a copy within the device that reads half of the bytes and writes as many."""
        source = make_buffer(num_bytes // 2, self.device).view(-1)[: max(num_bytes // 8, 1)]
        target = torch.empty_like(source)
        _, graph, _ = measured = self._measure("copy", lambda: target.copy_(source), partial(self._prepare, None))
        return spread(graph or measured[0])

    def _prepare(self, restore: Callable[[], object] | None) -> None:
        if restore:
            restore()
        self.buffer.fill_(1.0)  # sweeps the L2 cache, and keeps the device busy while the host queues what is timed

    def _free(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def _capturable(implementation: Implementation) -> bool:
    """Whether it never waits for the device (on a CPU: whether it is more than PyTorch)."""
    return isinstance(implementation, Backend) and implementation.name != "torch"
