"""Times one optimizer step on all parameters of real networks: SGD, and SGD of which half of the filters move.

Four contestants take turns, each on a model of its own: ``plain``, torch.optim.SGD(foreach=True) with momentum and
weight decay; ``sgd``, weight_evolution.AsynchronousSGD; ``hook``, AsynchronousUpdate around the plain optimizer; and
``loop``, the same written in PyTorch, parameter by parameter. Times are of whole steps, drawing the subsets included.
Nothing is timed before all have been shown to move the right filters to the right place. Prints a table, writes JSON.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks import optimizer_steps
from benchmarks.optimizer_steps import Row, measure, over_plain, table, too_slow
from benchmarks.timing import Spread, ratios
from benchmarks.verify import WrongResultError
from weight_evolution import AsynchronousSGD, AsynchronousUpdate

REPEATS = {"resnet20": 30, "mobilenetv2": 30, "resnet50": 15}
RATE = 0.5
OPTIONS = {"lr": 1e-6, "momentum": 0.9, "weight_decay": 1e-4}

SLOWEST = {"sgd": 1.05, "hook": 1.7}
"""At most so many times the plain step, on every network."""
LESS_THAN_LOOP = {("mobilenetv2", "sgd"): 5.0}
"""What it costs over the plain step is at least so many times less than what the loop costs over it."""


@dataclass
class LoopRow(Row):
    """With what the loop took."""

    ratio_loop: Spread
    """Times faster than the loop."""


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


class Steps(optimizer_steps.Steps):
    """The four contestants."""

    def __init__(self, name: str, device: torch.device) -> None:
        super().__init__(name, device, ("plain", "sgd", "hook", "loop"))
        params = {op: list(model.parameters()) for op, model in self.models.items()}
        plain, hooked = (torch.optim.SGD(params[op], foreach=True, **OPTIONS) for op in ("plain", "hook"))
        self.asynchronous = AsynchronousSGD(params["sgd"], model=self.models["sgd"], rate=RATE, **OPTIONS)
        self.hook = AsynchronousUpdate(hooked, self.models["hook"], rate=RATE)
        self.calls = {
            "plain": plain.step,
            "sgd": self.asynchronous.step,
            "hook": hooked.step,
            "loop": MaskLoop(params["loop"]).step,
        }

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


def measure_beside_loop(steps: optimizer_steps.Steps, repeats: int) -> list[LoopRow]:
    """A row per contestant."""
    rows, times = measure(steps, repeats)
    return [LoopRow(**vars(row), ratio_loop=ratios(times["loop"], times[row.op])) for row in rows]


def missed_bars(rows: Sequence[LoopRow]) -> list[str]:
    """One line for each bar that was measured and missed."""
    missed: list[str] = []
    loops = {row.model: row.ratio_plain.median - 1 for row in rows if row.op == "loop"}
    for row in rows:
        missed += too_slow(row, SLOWEST)
        less = LESS_THAN_LOOP.get((row.model, row.op))
        if less and (row.ratio_plain.median - 1) * less > loops[row.model]:
            missed.append(
                f"missed: {row.model}, {row.op}: costs {row.ratio_plain.median - 1:+.2f} over plain, the loop "
                f"{loops[row.model]:+.2f}, bar {less:g} times less"
            )
    return missed


def main(arguments: list[str] | None = None) -> int:
    """0, or 1 when a result is wrong or, with --check, a bar is missed."""
    return optimizer_steps.run(
        arguments,
        __doc__,
        "asynchronous",
        REPEATS,
        ["mobilenetv2", "resnet50"],
        Steps,
        rows=measure_beside_loop,
        table=lambda rows: table(rows, {"/ plain": over_plain, "x loop": lambda row: f"{row.ratio_loop.median:.1f}"}),
        missed_bars=missed_bars,
        settings={"rate": RATE, **OPTIONS},
    )


if __name__ == "__main__":
    sys.exit(main())
