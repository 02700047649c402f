"""Times a training iteration of ResNet-18 with and without measuring the activity of its units.

Two contestants take turns on one model: ``plain``, an iteration (forward, backward, SGD with momentum), and
``measured``, the same with UnitActivity's hooks. Beside them, the measurement alone: ``kernels``, all activations by
wk.add_channel_activity_ on the default backend, and ``torch``, by torch.linalg.vector_norm, on tensors of the same
shapes. Nothing is timed before the report has been shown to be that of plain PyTorch. Prints a table, writes JSON.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import we_kernels as wk
from benchmarks import entry, memory
from benchmarks.timing import Contestant, Spread, clock_for, spread, take_turns
from benchmarks.verify import WrongResultError
from weight_evolution import UnitActivity

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
REPEATS = dict.fromkeys(FORMATS, 20)
BATCH, SIZE, CLASSES = 32, 224, 1000

MOST_OVERHEAD = 0.02
"""Of an iteration that measures, over one that does not, on a CPU with two threads."""
TOLERANCE = 1e-4

BANDWIDTH_BYTES = 256 << 20
PAUSE = 0.01
"""Seconds before each call, in which PyTorch's threads stop spinning."""


@dataclass
class Row:
    """One contestant in one memory format."""

    memory_format: str
    op: str
    megabytes: float
    """Of all measured activations."""
    repeats: int
    seconds: Spread
    share: Spread
    """Of ``measured`` what it takes longer than ``plain``, of ``kernels`` and ``torch`` all, in plain iterations."""
    floor: float
    """Share of the measurement's time that reading the activations once takes at the read bandwidth; 0 for plain."""


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, 1x1 where the shape changes."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or inputs != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, channels, H / stride, W / stride]."""
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + self.downsample(x))


class ResNet18(nn.Module):
    """ResNet-18 for ImageNet. Source: He et al. (arXiv 1512.03385), table 1."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu = (
            nn.Conv2d(3, 64, 7, 2, 3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
        )
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        widths = ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2))
        self.blocks = nn.Sequential(
            *(block for i, c, stride in widths for block in (Block(i, c, stride), Block(c, c, 1)))
        )
        self.fc = nn.Linear(512, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, CLASSES]."""
        x = self.blocks(self.maxpool(self.relu(self.bn1(self.conv1(x)))))
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


class Iterations:
    """One model in one memory format, its iteration and its measured activations."""

    def __init__(self, memory_format: str, size: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.model = ResNet18().to(device).to(memory_format=FORMATS[memory_format])  # type: ignore[call-overload]
        self.images = torch.randn(BATCH, 3, size, size, device=device).to(memory_format=FORMATS[memory_format])
        self.labels = torch.randint(CLASSES, (BATCH,), device=device)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-4, momentum=0.9, foreach=True)
        self.activity = UnitActivity(self.model)
        self.activations: list[Tensor] = []
        """What is measured: copies, in the format that they have."""

    def iterate(self) -> None:
        """Forward, backward, step."""
        self.optimizer.zero_grad()
        functional.cross_entropy(self.model(self.images), self.labels).backward()
        self.optimizer.step()

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Around an iteration."""
        with self.activity:
            yield

    def verify(self) -> None:
        """The first pass: means of plain PyTorch.

        Raises:
            WrongResultError: names the layer.
        """
        found: dict[str, Tensor] = {}
        handles = []
        for name, layer in self.activity.graph.layers.items():
            (place,) = layer.activations
            assert place.is_output

            def keep(module: nn.Module, given: Any, output: Tensor, name: str = name) -> None:
                if name not in found:
                    found[name] = output.detach().clone()

            handles.append(place.module.register_forward_hook(keep))
        with self.activity, torch.no_grad():
            self.model(self.images)
        for handle in handles:
            handle.remove()
        self.activations = list(found.values())
        for (name, mean), values in zip(self.activity.report().activation.items(), found.values(), strict=True):
            expected = values.double().abs().mean((0, 2, 3)).cpu()
            if not torch.allclose(mean, expected, rtol=TOLERANCE, atol=0):
                raise WrongResultError(f"{name}: not the mean absolute activation")

    def alone(self, add: Callable[[Tensor, Tensor], object]) -> Callable[[], None]:
        """All measured activations are added to sums, without the model."""
        sums = [torch.zeros(values.shape[1], dtype=torch.float64, device=values.device) for values in self.activations]

        def add_all() -> None:
            for own, values in zip(sums, self.activations, strict=True):
                add(own, values)

        return add_all

    def contestants(self) -> list[Contestant]:
        """Plain first: it is the baseline."""
        return [
            Contestant("plain", nullcontext, self.iterate),
            Contestant("measured", self.measuring, self.iterate),
            Contestant("kernels", nullcontext, self.alone(wk.add_channel_activity_)),
            Contestant("torch", nullcontext, self.alone(_add_norms)),
        ]


def _add_norms(sums: Tensor, values: Tensor) -> None:
    sums += torch.linalg.vector_norm(values, 1, (0, 2, 3))


def measure(memory_format: str, iterations: Iterations, device: torch.device, repeats: int) -> list[Row]:
    """A row per contestant."""
    clock = clock_for(device)
    times = take_turns(iterations.contestants(), lambda: time.sleep(PAUSE), clock, repeats)
    bandwidth = memory.measure(memory.make_buffer(BANDWIDTH_BYTES, device), clock, 5)
    least_bytes = sum(values.numel() * values.element_size() for values in iterations.activations)
    rows = []
    for op, own in times.items():
        taken = [a - b for a, b in zip(own, times["plain"], strict=True)] if op in ("plain", "measured") else own
        share = spread([a / b for a, b in zip(taken, times["plain"], strict=True)])
        typical = spread(taken).median
        floor = least_bytes / bandwidth.read / typical if op != "plain" and typical > 0 else 0.0
        rows.append(Row(memory_format, op, least_bytes / 1e6, repeats, spread(own), share, floor))
    return rows


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = [
        "| format | what | MB measured | median ms | p20 | p80 | share of an iteration | p20 | p80 | floor |",
        "| --- | --- | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for row in rows:
        times = " | ".join(f"{1e3 * seconds:.1f}" for seconds in row.seconds)
        shares = " | ".join(f"{share:.2%}" for share in row.share)
        lines.append(f"| {row.memory_format} | {row.op} | {row.megabytes:.0f} | {times} | {shares} | {row.floor:.0%} |")
    return "\n".join(lines)


def missed_bars(rows: list[Row]) -> list[str]:
    """One line for each bar that was measured and missed: of the iterations, and of the kernels by themselves."""
    return [
        f"missed: {row.memory_format}, {row.op}: {row.share.median:.1%} of an iteration, bar {MOST_OVERHEAD:.0%}"
        for row in rows
        if row.op in ("measured", "kernels") and row.share.median > MOST_OVERHEAD
    ]


def main(arguments: list[str] | None = None) -> int:
    """0, or 1 when a result is wrong or, with --check, a bar is missed."""
    parser = entry.make_parser(__doc__, "activity", REPEATS, list(FORMATS))
    parser.add_argument("--size", type=int, default=SIZE, help=f"height and width of the images; default {SIZE}")
    options: argparse.Namespace = parser.parse_args(arguments)

    def measure_format(memory_format: str, device: torch.device, repeats: int) -> list[Row]:
        iterations = Iterations(memory_format, options.size, device)
        iterations.verify()
        return measure(memory_format, iterations, device, repeats)

    settings = {"model": "resnet18", "batch": BATCH, "size": options.size}
    return entry.run(options, measure_format, table, lambda rows, _: missed_bars(rows), settings)


if __name__ == "__main__":
    sys.exit(main())
