"""Times one optimizer step on all parameters of real networks: AdamW, and AdamW with an age per row and column.

Three contestants take turns, each on a model of its own: ``plain``, torch.optim.AdamW(foreach=True); ``unit``,
weight_evolution.UnitAdamW; and ``aged``, the same after a tenth of the rows and columns of every weight were reset.
Nothing is timed before the first two have been shown to agree bit for bit, on a CPU, and the third to differ only where
something was reset. Prints a table, writes JSON.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks import entry, memory
from benchmarks.asynchronous import BANDWIDTH_BYTES, PAUSE, make_model
from benchmarks.timing import Contestant, Spread, clock_for, ratios, spread, take_turns
from benchmarks.verify import WrongResultError
from weight_evolution import UnitAdamW

REPEATS = {"resnet56": 30, "resnet18": 20, "mobilenetv2": 30}
OPTIONS = {"lr": 1e-6, "weight_decay": 1e-2}

RESET = 0.1
"""Share of the rows and of the columns."""

SLOWEST = {"unit": 1.05, "aged": 1.05}
"""At most so many times the plain step, on every network."""

PASSES = 7
"""Parameter, gradient and moments are read, all but the gradient written."""


@dataclass
class Row:
    """One contestant on one network."""

    model: str
    op: str
    parameters: int
    repeats: int
    seconds: Spread
    ratio_plain: Spread
    """Times the plain step."""
    floor: float
    """Share of the time that the bytes it cannot avoid take at the read bandwidth."""


class Steps:
    """The three contestants on one network, from equal states."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.models = {op: make_model(name, device) for op in ("plain", "unit", "aged")}
        plain = torch.optim.AdamW(self.models["plain"].parameters(), foreach=True, **OPTIONS)
        self.units = {op: UnitAdamW(self.models[op].parameters(), **OPTIONS) for op in ("unit", "aged")}
        self.calls: dict[str, Callable[[], object]] = {"plain": plain.step}
        self.calls |= {op: optimizer.step for op, optimizer in self.units.items()}

    def contestants(self) -> list[Contestant]:
        """Plain first: it is the baseline."""
        return [Contestant(op, nullcontext, call) for op, call in self.calls.items()]

    def verify(self) -> None:
        """Two steps, between which the third contestant is reset in part.

        Raises:
            WrongResultError: names the contestant and the parameter.
        """
        for call in self.calls.values():
            call()
        new = {name: self._reset(param) for name, param in self.models["aged"].named_parameters()}
        for call in self.calls.values():
            call()
        wanted = dict(self.models["plain"].named_parameters())
        for op in self.units:
            for name, param in self.models[op].named_parameters():
                same = param == wanted[name]
                right = same if op == "unit" else same | new[name]
                exact = param.device.type == "cpu"
                if not (bool(right.all()) if exact else torch.allclose(param, wanted[name], atol=4 * OPTIONS["lr"])):
                    raise WrongResultError(f"{op}, {name}: not what the plain step gives where nothing was reset")

    def _reset(self, param: nn.Parameter) -> torch.Tensor:
        """Resets the first rows and columns of a parameter; which elements that are."""
        rows = torch.arange(param.shape[0], device=param.device) < RESET * param.shape[0]
        new = rows.view(-1, *[1] * (param.dim() - 1)).expand(param.shape).clone()
        columns = None
        if param.dim() > 1:
            columns = torch.arange(param.shape[1], device=param.device) < RESET * param.shape[1]
            new |= columns.view(-1, *[1] * (param.dim() - 2))
        self.units["aged"].reset_units_(param, rows, columns)
        return new

    def least_bytes(self, op: str) -> int:
        """What every step reads and writes at least."""
        return sum(PASSES * param.numel() * param.element_size() for param in self.models[op].parameters())


def measure(name: str, steps: Steps, device: torch.device, repeats: int) -> list[Row]:
    """A row per contestant."""
    clock = clock_for(device)
    times = take_turns(steps.contestants(), lambda: time.sleep(PAUSE), clock, repeats)
    bandwidth = memory.measure(memory.make_buffer(BANDWIDTH_BYTES, device), clock, 5)
    count = sum(param.numel() for param in steps.models["plain"].parameters())
    return [
        Row(
            name,
            op,
            count,
            repeats,
            spread(own),
            ratios(own, times["plain"]),
            steps.least_bytes(op) / bandwidth.read / spread(own).median,
        )
        for op, own in times.items()
    ]


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = [
        "| model | step | parameters | median ms | p20 | p80 | / plain | floor |",
        "| --- | --- | --: | --: | --: | --: | --: | --: |",
    ]
    for row in rows:
        times = " | ".join(f"{1e3 * seconds:.2f}" for seconds in row.seconds)
        lines.append(
            f"| {row.model} | {row.op} | {row.parameters} | {times} | {row.ratio_plain.median:.2f} | {row.floor:.0%} |"
        )
    return "\n".join(lines)


def missed_bars(rows: list[Row]) -> list[str]:
    """One line for each bar that was measured and missed."""
    return [
        f"missed: {row.model}, {row.op}: {row.ratio_plain.median:.2f} times plain, bar {SLOWEST[row.op]:g}"
        for row in rows
        if row.op in SLOWEST and row.ratio_plain.median > SLOWEST[row.op]
    ]


def main(arguments: list[str] | None = None) -> int:
    """0, or 1 when a result is wrong or, with --check, a bar is missed."""
    options = entry.make_parser(__doc__, "adamw", REPEATS, list(REPEATS)).parse_args(arguments)

    def measure_model(name: str, device: torch.device, repeats: int) -> list[Row]:
        steps = Steps(name, device)
        steps.verify()
        return measure(name, steps, device, repeats)

    return entry.run(options, measure_model, table, lambda rows, _: missed_bars(rows), {"reset": RESET, **OPTIONS})


if __name__ == "__main__":
    sys.exit(main())
