"""What the benchmarks of whole optimizer steps share: the parameters of real networks, contestants in turns, rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks import entry, memory, shapes
from benchmarks.timing import Contestant, Spread, clock_for, ratios, spread, take_turns

FEATURES = {"resnet20": 64, "resnet56": 64, "resnet18": 512, "mobilenetv2": 1280, "resnet50": 2048}
"""Of the last layer, a Linear with 1,000 outputs."""

BANDWIDTH_BYTES = 256 << 20
PAUSE = 0.01
"""Seconds before each call, in which PyTorch's threads stop spinning."""


def make_model(name: str, device: torch.device) -> nn.ModuleList:
    """Convolutions with their BatchNorms, and the classifier, with gradients; the same at every call."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for conv in shapes.MODELS[name]():
        channels = conv.channels * conv.groups
        layers.append(nn.Conv2d(channels, conv.filters, conv.kernel, groups=conv.groups, bias=False))
        layers.append(nn.BatchNorm2d(conv.filters))
    model = nn.ModuleList([*layers, nn.Linear(FEATURES[name], 1000)]).to(device)
    generator = torch.Generator().manual_seed(1)
    for param in model.parameters():
        param.grad = torch.randn(param.shape, generator=generator).to(device)
    return model


class Steps:
    """Contestants on one network, each with a model of its own, from equal states.

    Args:
        name: of the network.
        device: of the models.
        ops: names of the contestants. "plain" is among them, the baseline; ``calls`` has the step of each.
    """

    calls: dict[str, Callable[[], object]]

    def __init__(self, name: str, device: torch.device, ops: Sequence[str]) -> None:
        self.name, self.device = name, device
        self.models = {op: make_model(name, device) for op in ops}

    def verify(self) -> None:
        """Take steps and compare.

        Raises:
            WrongResultError: names the contestant and the parameter.
        """
        raise NotImplementedError

    def least_bytes(self, op: str) -> float:
        """What every step reads and writes at least."""
        raise NotImplementedError


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


def measure(steps: Steps, repeats: int) -> tuple[list[Row], dict[str, list[float]]]:
    """A row per contestant, and all times."""
    clock = clock_for(steps.device)
    contestants = [Contestant(op, nullcontext, call) for op, call in steps.calls.items()]
    times = take_turns(contestants, lambda: time.sleep(PAUSE), clock, repeats)
    bandwidth = memory.measure(memory.make_buffer(BANDWIDTH_BYTES, steps.device), clock, 5)
    count = sum(param.numel() for param in steps.models["plain"].parameters())
    rows = []
    for op, own in times.items():
        found = spread(own)
        floor = steps.least_bytes(op) / bandwidth.read / found.median
        rows.append(Row(steps.name, op, count, repeats, found, ratios(own, times["plain"]), floor))
    return rows, times


def table(rows: Sequence[Row], columns: Mapping[str, Callable[[Row], str]]) -> str:
    """Markdown; ``columns``: what stands between the times and the floor, by heading."""
    headings = ["model", "step", "parameters", "median ms", "p20", "p80", *columns, "floor"]
    lines = [headings, ["---", "---", *["--:"] * (len(headings) - 2)]]
    for row in rows:
        times = [f"{1e3 * seconds:.2f}" for seconds in row.seconds]
        compared = [column(row) for column in columns.values()]
        lines.append([row.model, row.op, str(row.parameters), *times, *compared, f"{row.floor:.0%}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def over_plain(row: Row) -> str:
    """A column: times the plain step."""
    return f"{row.ratio_plain.median:.2f}"


def too_slow(row: Row, slowest: Mapping[str, float]) -> list[str]:
    """A line if a row took more than so many times the plain step."""
    if row.op not in slowest or row.ratio_plain.median <= slowest[row.op]:
        return []
    return [f"missed: {row.model}, {row.op}: {row.ratio_plain.median:.2f} times plain, bar {slowest[row.op]:g}"]


def run(
    arguments: list[str] | None,
    description: str | None,
    name: str,
    repeats: Mapping[str, int],
    models: Sequence[str],
    make: Callable[[str, torch.device], Steps],
    *,
    rows: Callable[[Steps, int], list[Row]],
    table: Callable[[list[Row]], str],
    missed_bars: Callable[[list[Row]], list[str]],
    settings: Mapping[str, object],
) -> int:
    """0, or 1 when a result is wrong or, with --check, a bar is missed. See `entry.run`."""
    options = entry.make_parser(description, name, repeats, models).parse_args(arguments)

    def measure_model(model: str, device: torch.device, repeats: int) -> list[Row]:
        steps = make(model, device)
        steps.verify()
        return rows(steps, repeats)

    return entry.run(options, measure_model, table, lambda found, _: missed_bars(found), settings)
