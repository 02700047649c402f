"""Times whole steps and single operations, or the kernels of a step, network by network, each row journalled at once.

A part of `gpu.py`. An operation that is wrong, or fails, is reported and not timed; the others are. Started again
after a step has killed the process, it goes on with the next one.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.baselines import Backend, CompiledPerLayer, Implementation, PerLayer
from benchmarks.case import Case
from benchmarks.gpu_timing import GpuTimer, captured
from benchmarks.journal import Journal, Steps, leave_if_broken
from benchmarks.kernel_times import kernel_times
from benchmarks.optimizers import bytes_of_a_step, optimizer_steps
from benchmarks.reactivation import WIDTHS
from benchmarks.results import Row
from benchmarks.timing import Spread
from benchmarks.unit_operators import UnitOperator, unit_operators, verify
from benchmarks.verify import WrongResultError, checks
from we_kernels import use_backend
from we_kernels.runtime import backends

UNITS = (
    ("resnet50", "float32"),
    ("resnet50", "bfloat16"),
    ("resnet20", "float32"),
    ("mobilenetv2", "float32"),
    ("resnet110", "float32"),
    ("resnet56", "float32"),
    ("resnet20", "bfloat16"),
    ("mobilenetv2", "bfloat16"),
    ("resnet110", "bfloat16"),
    ("resnet56", "bfloat16"),
    ("stack_1b", "float32"),
    ("stack_1b", "bfloat16"),
    ("resnet18", "float32"),
    ("narrow_resnet18", "float32"),
)
"""Networks and dtypes, the most telling ones first."""
UNIT_OPERATORS = "unit operators"
"""A kind that is measured on networks of its own."""
OPERATIONS = ("importance", "match", "crossover", "step")
OPTIMIZERS = "optimizers"
KERNELS = ("triton", "native")
"""Contestants with kernels of their own; they never wait for the device."""
BASELINE_REPEATS = 5
"""Of what takes milliseconds and waits for the device."""
PROFILED = 12
"""Calls per profile."""
LIMIT = 60.0
"""Seconds that one network may take with one contestant."""


class Unit(NamedTuple):
    """What is measured in one step of the job."""

    model: str
    dtype: str
    contestant: str
    kind: str
    """"operations", "kernels", "kernels in a graph", "norms" or "unit operators"."""

    def __str__(self) -> str:
        return " ".join(self)


def main(arguments: Sequence[str] | None = None) -> int:
    """0; what is wrong stands in the journal."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", help="name in the journal")
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, required=True)
    parser.add_argument("--contestants", nargs="+", required=True, help="backends, optimizers, per_layer, ...")
    parser.add_argument("--models", nargs="+", choices=[model for model, _ in UNITS], help="default: all")
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), help="default: both")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--until", type=float, default=float("inf"), help="seconds since 1970; then nothing is begun")
    options = parser.parse_args(arguments)
    steps = Steps(Journal(options.journal), options.job, LIMIT)
    bench = Bench(torch.device(options.device), options.repeats, steps)
    for unit in units(options.models, options.dtypes, options.contestants, options.kinds):
        if str(unit) in steps.begun:
            continue
        if time.time() > options.until:
            steps.journal.write("not reached", job=steps.job, step=str(unit))
            continue
        with steps.step(str(unit)):
            bench.run(unit)
    steps.finish()
    return 0


def units(
    models: Sequence[str] | None, dtypes: Sequence[str] | None, contestants: Sequence[str], kinds: Sequence[str]
) -> list[Unit]:
    """In order; kernels are profiled, and norms measured, for those that have kernels."""
    return [
        Unit(model, dtype, contestant, kind)
        for model, dtype in UNITS
        for kind in kinds
        for contestant in contestants
        if (model in WIDTHS) == (kind == UNIT_OPERATORS)
        and (not models or model in models)
        and (not dtypes or dtype in dtypes)
        and (kind == "operations" or contestant in KERNELS)
        and (dtype == "float32" or contestant != CompiledPerLayer.name)
    ]


class Bench:
    """All that the steps share.

    Args:
        device: of the weights.
        repeats: timed calls.
        steps: of the job.
    """

    def __init__(self, device: torch.device, repeats: int, steps: Steps) -> None:
        self.device = device
        self.timer = GpuTimer(device, repeats)
        self.few = GpuTimer(device, min(repeats, BASELINE_REPEATS))
        self.steps = steps

    def run(self, unit: Unit) -> None:
        """Measures one unit. Whatever goes wrong is journalled, and ends this process only if the device is broken."""
        reason = self._unavailable(unit.contestant)
        if reason:
            self.write("not measured", unit, reason=reason)
            return
        self.guarded(unit, "", partial(KINDS[unit.kind], self, unit))
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def guarded(self, unit: Unit, op: str, call: Callable[[], object]) -> bool:
        """Whether ``call`` ended without an error; else the error is journalled."""
        try:
            call()
        except WrongResultError as error:
            self.write("wrong", unit, op=op, detail=str(error))
        except Exception as error:
            self.write("error", unit, op=op, detail=f"{type(error).__name__}: {error}"[:600])
            leave_if_broken(self.steps)
        else:
            return True
        return False

    def write(self, event: str, unit: Unit, **values: Any) -> None:
        """A line about a unit."""
        self.steps.journal.write(event, model=unit.model, dtype=unit.dtype, backend=unit.contestant, **values)

    def case(self, unit: Unit, norms: bool = False) -> Case:
        """Weights to work on."""
        return Case(unit.model, norms=norms, device=self.device, dtype=getattr(torch, unit.dtype))

    def _unavailable(self, contestant: str) -> str | None:
        if contestant not in backends.BACKENDS:
            return None
        if contestant == "triton" and self.device.type == "cpu":
            return "on CPU tensors Triton only interprets its kernels, for tests"
        return backends.unavailable(contestant, self.device.type)


def measure_operations(bench: Bench, unit: Unit) -> None:
    """Each operation: right or wrong, then its times."""
    case = bench.case(unit)
    if unit.contestant == OPTIMIZERS:
        _measure_optimizers(bench, unit, case)
        return
    implementation = _implementation(unit.contestant)
    sizes = _bytes(case)
    compiled = unit.contestant == CompiledPerLayer.name
    verified = checks(implementation, case)
    for op in ("step",) if compiled else OPERATIONS:
        case.restore()
        if bench.guarded(unit, op, verified[op]):
            case.restore()
            call = _calls(implementation, case)[op]
            with implementation.active():
                bench.guarded(unit, op, partial(_measure, bench, unit, op, call, case.restore, sizes[op]))


def measure_norms(bench: Bench, unit: Unit) -> None:
    """The step on convolutions and the scales and shifts of their BatchNorms."""
    case, implementation = bench.case(unit, norms=True), _implementation(unit.contestant)
    num_bytes = _bytes(case)["step"]
    if bench.guarded(unit, "step+norm", checks(implementation, case)["step"]):
        call = _calls(implementation, case)["step"]
        with implementation.active():
            _measure(bench, unit, "step+norm", call, case.restore, num_bytes)


def measure_kernels(bench: Bench, unit: Unit, in_graph: bool = False) -> None:
    """The single kernels of a step."""
    case, implementation = bench.case(unit), _implementation(unit.contestant)
    correct = bench.guarded(unit, "step", checks(implementation, case)["step"])
    case.restore()
    call = _calls(implementation, case)["step"]

    def prepare() -> None:
        case.restore()
        bench.timer.sweep()

    with implementation.active():
        call()
        if in_graph and bench.device.type == "cuda":
            call = captured(call)
        found = kernel_times(call, prepare, PROFILED)
    _write_kernels(bench, unit, found, in_graph=in_graph, correct=correct)


def _write_kernels(bench: Bench, unit: Unit, found: dict[str, Any], **where: Any) -> None:
    kernels = found.pop("kernels")
    bench.write("kernels of a step", unit, number=len(kernels), **where, **found)
    for place, kernel in enumerate(kernels):
        bench.write("kernel", unit, place=place, **where, **kernel)


def measure_unit_operators(bench: Bench, unit: Unit) -> None:
    """Those of unit reactivation: right or wrong, then times and kernels."""
    for op, make in unit_operators(unit.model, bench.device).items():
        if bench.guarded(unit, op, partial(verify, make, unit.contestant)):
            bench.guarded(unit, op, partial(_measure_unit_operator, bench, unit, op, make()))


def _measure_unit_operator(bench: Bench, unit: Unit, op: str, operator: UnitOperator) -> None:
    graphs: list[Spread | None] = []
    with use_backend(unit.contestant):
        eager, host = bench.timer.eager(operator.call)
        bench.guarded(unit, f"{op} in a graph", lambda: graphs.append(bench.timer.graph(operator.call)))
        found = kernel_times(operator.call, bench.timer.sweep, PROFILED)
    spreads = {"graph": graphs[0] if graphs else None, "seconds": eager, "host": host}
    times = {name: times._asdict() for name, times in spreads.items() if times}
    what = {"method": UNIT_OPERATORS, "model": unit.model, "op": op, "backend": unit.contestant}
    bench.steps.journal.write("row of a method", **what, **times)
    _write_kernels(bench, unit, found, op=op, in_graph=False, correct=True)


KINDS: dict[str, Callable[[Bench, Unit], None]] = {
    "operations": measure_operations,
    "norms": measure_norms,
    "kernels": measure_kernels,
    "kernels in a graph": partial(measure_kernels, in_graph=True),
    UNIT_OPERATORS: measure_unit_operators,
}


def _implementation(name: str) -> Implementation:
    if name == PerLayer.name:
        return PerLayer()
    return CompiledPerLayer() if name == CompiledPerLayer.name else Backend(name)


def _bytes(case: Case) -> dict[str, int]:
    """What each operation cannot avoid to read and write."""
    reference = Backend("torch")
    with reference.active():
        crossed = case.crossover_bytes(reference.step(case)[1])
    case.restore()
    weights = case.weight_bytes
    sizes = (weights, 8 * case.bank.num_filters, crossed, weights + crossed)
    return dict(zip(OPERATIONS, sizes, strict=True))


def _calls(implementation: Implementation, case: Case) -> dict[str, Callable[[], object]]:
    """Every operation from the inputs that the reference found."""
    reference = Backend("torch")
    with reference.active():
        importance, donor = reference.step(case)
    case.restore()
    return {
        "importance": partial(implementation.importance, case),
        "match": partial(implementation.match, case, importance),
        "crossover": partial(implementation.crossover, case, donor),
        "step": partial(implementation.step, case),
    }


def _measure(
    bench: Bench, unit: Unit, op: str, call: Callable[[], object], restore: Callable[[], object] | None, num_bytes: int
) -> None:
    """One row. What cannot be captured has no time in a graph."""
    captures = unit.contestant in KERNELS or op == "optimizer step"
    timer = bench.timer if captures else bench.few
    eager, host = timer.eager(call, restore)
    graphs: list[Spread | None] = []
    if captures:
        bench.guarded(unit, f"{op} in a graph", lambda: graphs.append(timer.graph(call, restore)))
    graph = graphs[0] if graphs else None
    copy = bench.timer.copy(num_bytes).median
    best = (graph or eager).median
    row = Row(
        *(unit.model, op, None if op == "importance" else 0.2, unit.contestant, timer.repeats, eager),
        *(None, None, num_bytes, num_bytes / best / 1e9, None, copy / best, unit.dtype, graph, host),
    )
    bench.steps.journal.write("row", correct=True, copy=copy, **row.as_json())


def _measure_optimizers(bench: Bench, unit: Unit, case: Case) -> None:
    for name, step in optimizer_steps(case.weights).items():
        named = unit._replace(contestant=name)
        num_bytes = bytes_of_a_step(name, case.weights)
        bench.guarded(named, "optimizer step", partial(_measure, bench, named, "optimizer step", step, None, num_bytes))


if __name__ == "__main__":
    sys.exit(main())
