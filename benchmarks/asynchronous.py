"""Times one optimizer step on all parameters of real networks: SGD, and SGD of which half of the filters move.

Four contestants take turns, each on a model of its own: ``plain``, torch.optim.SGD(foreach=True) with momentum and
weight decay; ``sgd``, weight_evolution.AsynchronousSGD; ``hook``, AsynchronousUpdate around the plain optimizer; and
``loop``, the same written in PyTorch, parameter by parameter. Times are of whole steps, drawing the subsets included.
Nothing is timed before all have been shown to move the right filters to the right place. Prints a table, writes JSON.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks import entry, memory, shapes
from benchmarks.timing import Contestant, Spread, clock_for, ratios, spread, take_turns
from benchmarks.verify import WrongResultError
from weight_evolution import AsynchronousSGD, AsynchronousUpdate

REPEATS = {"resnet20": 30, "mobilenetv2": 30, "resnet50": 15}
FEATURES = {"resnet20": 64, "resnet56": 64, "resnet18": 512, "mobilenetv2": 1280, "resnet50": 2048}
"""Of the last layer, a Linear with 1,000 outputs."""

RATE = 0.5
OPTIONS = {"lr": 1e-6, "momentum": 0.9, "weight_decay": 1e-4}

SLOWEST = {"sgd": 1.05, "hook": 1.7}
"""At most so many times the plain step, on every network."""
LESS_THAN_LOOP = {("mobilenetv2", "sgd"): 5.0}
"""What it costs over the plain step is at least so many times less than what the loop costs over it."""

BANDWIDTH_BYTES = 256 << 20
PAUSE = 0.01
"""Seconds before each call, in which PyTorch's threads stop spinning."""


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
    ratio_loop: Spread
    """Times faster than the loop."""
    floor: float
    """Share of the time that the bytes it cannot avoid take at the read bandwidth."""


class MaskLoop:
    """SGD parameter by parameter as one would write it: clone, step, and torch.where for the filters that stay."""

    def __init__(self, params: list[Tensor]) -> None:
        self.params = params
        self.buffers = [torch.zeros_like(param) for param in params]

    @torch.no_grad()
    def step(self) -> None:
        """Half of the filters of every convolution, as in the paper; all of everything else."""
        for param, buffer in zip(self.params, self.buffers, strict=True):
            update = param.grad.add(param, alpha=OPTIONS["weight_decay"])
            buffer.mul_(OPTIONS["momentum"]).add_(update)
            if param.dim() < 4:
                param.add_(buffer, alpha=-OPTIONS["lr"])
                continue
            before, filters = param.clone(), param.shape[0]
            param.add_(buffer, alpha=-OPTIONS["lr"])
            moves = torch.zeros(filters, dtype=torch.bool, device=param.device)
            moves[torch.randperm(filters, device=param.device)[: max(1, round(RATE * filters))]] = True
            param.copy_(torch.where(moves.view(-1, 1, 1, 1), param, before))


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
    """The four contestants on one network, from equal states."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.models = {op: make_model(name, device) for op in ("plain", "sgd", "hook", "loop")}
        params = {op: list(model.parameters()) for op, model in self.models.items()}
        plain, hooked = (torch.optim.SGD(params[op], foreach=True, **OPTIONS) for op in ("plain", "hook"))
        self.asynchronous = AsynchronousSGD(params["sgd"], model=self.models["sgd"], rate=RATE, **OPTIONS)
        self.hook = AsynchronousUpdate(hooked, self.models["hook"], rate=RATE)
        self.calls: dict[str, Callable[[], object]] = {
            "plain": plain.step,
            "sgd": self.asynchronous.step,
            "hook": hooked.step,
            "loop": MaskLoop(params["loop"]).step,
        }

    def contestants(self) -> list[Contestant]:
        """Plain first: it is the baseline."""
        return [Contestant(op, nullcontext, call) for op, call in self.calls.items()]

    def verify(self) -> None:
        """The first step: what moves, moves as in the plain one, bit for bit; what does not, stays.

        Raises:
            WrongResultError: names the contestant and the parameter.
        """
        before = {name: param.detach().clone() for name, param in self.models["plain"].named_parameters()}
        selection = self.asynchronous.selection()
        for call in self.calls.values():
            call()
        wanted = dict(self.models["plain"].named_parameters())
        for op in ("sgd", "hook", "loop"):
            for name, param in self.models[op].named_parameters():
                moved = (param != before[name]).flatten(1).any(1) if param.dim() == 4 else None
                if moved is None:
                    right = torch.equal(param, wanted[name])
                else:
                    expected = max(1, round(RATE * len(moved))) if op == "loop" else selection[name].to(moved.device)
                    right = bool((moved.sum() == expected if op == "loop" else moved == expected).all())
                    right = right and torch.equal(param[moved], wanted[name][moved])
                if not right:
                    raise WrongResultError(f"{op}, {name}: not what the plain step gives for the filters that move")

    def least_bytes(self, op: str) -> float:
        """Parameters, gradients and momentum read once, momentum and what moves written."""
        total = 0.0
        for param in self.models[op].parameters():
            moving = RATE if param.dim() == 4 and op != "plain" else 1.0
            total += param.numel() * param.element_size() * (4 + moving)
        return total


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
            ratios(times["loop"], own),
            steps.least_bytes(op) / bandwidth.read / spread(own).median,
        )
        for op, own in times.items()
    ]


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = [
        "| model | step | parameters | median ms | p20 | p80 | / plain | x loop | floor |",
        "| --- | --- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for row in rows:
        times = " | ".join(f"{1e3 * seconds:.2f}" for seconds in row.seconds)
        compared = f"{row.ratio_plain.median:.2f} | {row.ratio_loop.median:.1f} | {row.floor:.0%}"
        lines.append(f"| {row.model} | {row.op} | {row.parameters} | {times} | {compared} |")
    return "\n".join(lines)


def missed_bars(rows: list[Row]) -> list[str]:
    """One line for each bar that was measured and missed."""
    missed = []
    loops = {row.model: row.ratio_plain.median - 1 for row in rows if row.op == "loop"}
    for row in rows:
        slowest, less = SLOWEST.get(row.op), LESS_THAN_LOOP.get((row.model, row.op))
        if slowest and row.ratio_plain.median > slowest:
            missed.append(f"missed: {row.model}, {row.op}: {row.ratio_plain.median:.2f} times plain, bar {slowest:g}")
        if less and (row.ratio_plain.median - 1) * less > loops[row.model]:
            missed.append(
                f"missed: {row.model}, {row.op}: costs {row.ratio_plain.median - 1:+.2f} over plain, the loop "
                f"{loops[row.model]:+.2f}, bar {less:g} times less"
            )
    return missed


def main(arguments: list[str] | None = None) -> int:
    """0, or 1 when a result is wrong or, with --check, a bar is missed."""
    options = entry.make_parser(__doc__, "asynchronous", REPEATS, ["mobilenetv2", "resnet50"]).parse_args(arguments)

    def measure_model(name: str, device: torch.device, repeats: int) -> list[Row]:
        steps = Steps(name, device)
        steps.verify()
        return measure(name, steps, device, repeats)

    return entry.run(options, measure_model, table, lambda rows, _: missed_bars(rows), {"rate": RATE, **OPTIONS})


if __name__ == "__main__":
    sys.exit(main())
