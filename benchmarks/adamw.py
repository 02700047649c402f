"""Times one optimizer step on all parameters of real networks: AdamW, and AdamW with an age per row and column.

Three contestants take turns, each on a model of its own: ``plain``, torch.optim.AdamW(foreach=True); ``unit``,
weight_evolution.UnitAdamW; and ``aged``, the same after a tenth of the rows and columns of every weight were reset.
Nothing is timed before the first two have been shown to agree bit for bit, on a CPU, and the third to differ only where
something was reset. Prints a table, writes JSON.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import nn

from benchmarks import optimizer_steps
from benchmarks.optimizer_steps import Row, measure, over_plain, table, too_slow
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


class Steps(optimizer_steps.Steps):
    """The three contestants."""

    def __init__(self, name: str, device: torch.device) -> None:
        super().__init__(name, device, ("plain", "unit", "aged"))
        plain = torch.optim.AdamW(self.models["plain"].parameters(), foreach=True, **OPTIONS)
        self.units = {op: UnitAdamW(self.models[op].parameters(), **OPTIONS) for op in ("unit", "aged")}
        self.calls = {"plain": plain.step, **{op: optimizer.step for op, optimizer in self.units.items()}}

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

    def least_bytes(self, op: str) -> float:
        return sum(PASSES * param.numel() * param.element_size() for param in self.models[op].parameters())


def missed_bars(rows: Sequence[Row]) -> list[str]:
    """One line for each bar that was measured and missed."""
    return [line for row in rows for line in too_slow(row, SLOWEST)]


def main(arguments: list[str] | None = None) -> int:
    """0, or 1 when a result is wrong or, with --check, a bar is missed."""
    return optimizer_steps.run(
        arguments,
        __doc__,
        "adamw",
        REPEATS,
        list(REPEATS),
        Steps,
        rows=lambda steps, repeats: measure(steps, repeats)[0],
        table=lambda rows: table(rows, {"/ plain": over_plain}),
        missed_bars=missed_bars,
        settings={"reset": RESET, **OPTIONS},
    )


if __name__ == "__main__":
    sys.exit(main())
