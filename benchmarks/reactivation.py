"""Times one step of unit reactivation on ResNet-18 with AdamW, for 5% of the units of all layers that take part.

Contestants take turns, each on a model of its own. ``native`` and ``torch``, we_kernels.reactivate_ on these backends,
give fresh weights of the layer's norm, zero outgoing weights, reset the norms behind, and fill the second moments with
their means; ``loop`` does the same in PyTorch, layer by layer with masks. ``native reset`` and ``redo loop`` do what
the published ports of ReDo do: fresh weights as drawn, zero outgoing weights, zero moments; the loop is written as
theirs (github.com/timoklein/redo, src/redo.py), but looks up the optimizer's state once. ``iteration`` is one training
step at batch 32. Nothing is timed before all have been shown to write the right values. Prints a table, writes JSON.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

import we_kernels as wk
from benchmarks import entry, memory
from benchmarks.timing import Contestant, Spread, clock_for, ratios, spread, take_turns
from benchmarks.verify import WrongResultError
from weight_evolution.model.unit_graph import find_units

WIDTHS = {"resnet18": (64, 128, 256, 512), "narrow_resnet18": (16, 24, 24, 32)}
"""The narrow one is for tests."""
REPEATS = dict.fromkeys(WIDTHS, 30)
ITERATIONS = 3
BATCH, PIXELS, CLASSES = 32, 224, 1000
SHARE = 0.05
"""Of each layer's units that are revived."""

LARGEST_SHARE = 0.03
"""Of an iteration, for ``native``."""
FASTER = {"native": 20.0, "native reset": 20.0}
"""At least so many times than the loop that does the same."""
LOOPS = {"native": "loop", "torch": "loop", "native reset": "redo loop"}

BANDWIDTH_BYTES = 256 << 20
LINE = 64
"""Bytes of a cache line, of a CPU."""
PAUSE = 0.01
"""Seconds before each call, in which PyTorch's threads stop spinning."""


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, by a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if inputs != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] -> [B, channels, H / stride, W / stride]."""
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(y + self.shortcut(x))


def resnet18(name: str = "resnet18") -> nn.Sequential:
    """ResNet-18 for ImageNet, the same at every call. Source: He et al. (arXiv 1512.03385), table 1."""
    torch.manual_seed(0)
    width = WIDTHS[name][0]
    layers = [nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    for channels in WIDTHS[name]:
        layers += [Block(width, channels, 1 if channels == width else 2), Block(channels, channels, 1)]
        width = channels
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, CLASSES))


@dataclass
class Row:
    """One contestant."""

    model: str
    op: str
    units: int
    repeats: int
    seconds: Spread
    share_of_iteration: float
    ratio_loop: Spread
    """Times faster than the loop that does the same."""
    megabytes: float
    """That it cannot avoid to read and write, in whole cache lines."""
    floor: float
    """Share of the time that these take at the read and copy bandwidth."""
    ratio_floor: float
    """Times faster than the loop that a step would be which takes no longer than that."""


class Network:
    """One contestant's ResNet-18 with AdamW, whose moments are those of no training, but not zero."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.model = resnet18(name).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, foreach=True)
        generator = torch.Generator().manual_seed(1)
        for param in self.model.parameters():
            moments = torch.randn(2, *param.shape, generator=generator).mul_(1e-3).to(device)
            state = {"step": torch.tensor(100.0), "exp_avg": moments[0], "exp_avg_sq": moments[1].square()}
            self.optimizer.state[param] = state
        self.layers = list(find_units(self.model).layers.values())
        generator.manual_seed(2)
        self.masks = []
        for layer in self.layers:
            mask = torch.zeros(layer.units, dtype=torch.bool)
            mask[torch.randperm(layer.units, generator=generator)[: math.ceil(SHARE * layer.units)]] = True
            self.masks.append(mask.to(device))
        self.revived = torch.cat(self.masks)

    def moments(self, param: Tensor) -> tuple[Tensor, Tensor]:
        """First and second."""
        state = self.optimizer.state[param]
        return state["exp_avg"], state["exp_avg_sq"]

    def tensors(self) -> dict[str, Tensor]:
        """All that a step may write to, by name."""
        found = dict(self.model.state_dict())
        for name, param in self.model.named_parameters():
            found[f"{name}, first moment"], found[f"{name}, second moment"] = self.moments(param)
        return found

    def plan(self, second_moment: str, norm_scale: str) -> wk.UnitPlan:
        """What belongs to the units; the values that second moments and the norms' scales get."""
        items: list[wk.UnitTensor] = []

        def add(param: Tensor, value: str, **tables: Tensor) -> None:
            axis = next(iter(tables)).removesuffix("s")
            items.append(wk.UnitTensor(param.data, **tables, **{f"{axis}_value": value}))
            if param in self.optimizer.state:
                for moment, its_value in zip(self.moments(param), ("zero", second_moment), strict=True):
                    items.append(wk.UnitTensor(moment, **tables, **{f"{axis}_value": its_value}))

        first = 0
        for layer in self.layers:
            own = torch.arange(first, first + layer.units)
            first += layer.units
            add(layer.module.weight, "draw", rows=own)
            norm = layer.norm
            add(norm.weight, norm_scale, rows=own)
            for tensor, value in ((norm.bias, "zero"), (norm.running_mean, "zero"), (norm.running_var, "one")):
                add(tensor, value, rows=own)
            for reader in layer.outgoing:
                add(reader.module.weight, "zero", columns=own)
        return wk.UnitPlan(items, first)


class Kernel:
    """`reactivate_` on a backend."""

    def __init__(self, network: Network, backend: str | None, reset: bool) -> None:
        self.network, self.backend, self.steps = network, backend, 0
        self.scale = "initial" if reset else "layer"
        self.plan = network.plan("zero", "one") if reset else network.plan("mean", "mean or one")

    def __call__(self) -> None:
        """One step."""
        with wk.use_backend(self.backend) if self.backend else nullcontext():
            wk.reactivate_(self.plan, self.network.revived, seed=0, step=self.steps, scale=self.scale)
        self.steps += 1


def fill_moments(network: Network, param: Tensor, place: tuple[slice | Tensor, ...]) -> None:
    """First moments 0, second the mean of those that stay."""
    first, second = network.moments(param)
    stays = torch.ones_like(second, dtype=torch.bool)
    stays[place] = False
    first[place] = 0
    second[place] = second[stays].mean()


def draw(weight: Tensor, mask: Tensor) -> Tensor:
    """PyTorch's default for a convolution."""
    bound = 1 / math.sqrt(weight[0].numel())
    return torch.empty_like(weight[mask]).uniform_(-bound, bound)


@torch.no_grad()
def loop(network: Network) -> None:
    """The same as `reactivate_`, layer by layer."""
    for layer, mask in zip(network.layers, network.masks, strict=True):
        if not mask.any():
            continue
        weight, norm = layer.module.weight.data, layer.norm
        live = weight[~mask].abs().sum((1, 2, 3)).mean()
        fresh = draw(weight, mask)
        weight[mask] = fresh * (live / fresh.abs().sum((1, 2, 3), keepdim=True))
        norm.weight.data[mask] = norm.weight.data[~mask].mean()
        norm.bias.data[mask] = norm.running_mean[mask] = 0
        norm.running_var[mask] = 1
        for param in (layer.module.weight, norm.weight, norm.bias):
            fill_moments(network, param, (mask,))
        for reader in layer.outgoing:
            reader.module.weight.data[:, mask] = 0
            fill_moments(network, reader.module.weight, (slice(None), mask))


@torch.no_grad()
def redo_loop(network: Network) -> None:
    """As the published ports of ReDo, which know no norms."""
    for layer, mask in zip(network.layers, network.masks, strict=True):
        if torch.all(~mask):
            continue
        weight = layer.module.weight
        weight.data[mask, ...] = draw(weight.data, mask)
        for moment in network.moments(weight):
            moment[mask, ...] = 0.0
        for reader in layer.outgoing:
            reader.module.weight.data[:, mask, ...] = 0.0
            for moment in network.moments(reader.module.weight):
                moment[:, mask, ...] = 0.0


class Steps:
    """The contestants, from equal states."""

    def __init__(self, name: str, device: torch.device) -> None:
        ops = ("native", "torch", "native reset", "loop", "redo loop")
        self.networks = {op: Network(name, device) for op in ops}
        self.calls: dict[str, Callable[[], object]] = {
            "native": Kernel(self.networks["native"], None, reset=False),
            "torch": Kernel(self.networks["torch"], "torch", reset=False),
            "native reset": Kernel(self.networks["native reset"], None, reset=True),
            "loop": lambda: loop(self.networks["loop"]),
            "redo loop": lambda: redo_loop(self.networks["redo loop"]),
        }

    def contestants(self) -> list[Contestant]:
        """All."""
        return [Contestant(name, nullcontext, call) for name, call in self.calls.items()]

    def verify(self) -> None:
        """The first step: both sides write the same, but for the random numbers, of which the norms are compared.

        Raises:
            WrongResultError: names the contestant and the tensor.
        """
        for call in self.calls.values():
            call()
        network = self.networks["torch"]
        drawn = {f"{layer.name}.weight": mask for layer, mask in zip(network.layers, network.masks, strict=True)}
        for op, other in (("torch", "native"), ("torch", "loop"), ("native reset", "redo loop")):
            wanted, found = self.networks[op].tensors(), self.networks[other].tensors()
            for name, tensor in found.items():
                if other == "redo loop" and tensor.dim() != 4:
                    continue  # it leaves norms alone
                right = wanted[name]
                if (mask := drawn.get(name)) is not None:
                    tolerance = 0.3 if other == "redo loop" else 1e-4
                    norms = [each[mask].abs().sum((1, 2, 3)) for each in (tensor, right)]
                    self._require_close(*norms, tolerance, f"{other}, {name}, what is drawn")
                    tensor, right = tensor[~mask], right[~mask]
                self._require_close(tensor, right, 1e-5, f"{other}, {name}")

    @staticmethod
    def _require_close(found: Tensor, wanted: Tensor, tolerance: float, what: str) -> None:
        if not torch.allclose(found.float(), wanted.float(), rtol=tolerance, atol=0):
            raise WrongResultError(f"{what}: not what it must be")

    def least_bytes(self, op: str) -> tuple[int, int]:
        """In whole cache lines: what is only read, for means and norms, and what is read and then written.

        A line is written if a single element of it is: a column of a 3x3 convolution has 36 bytes in each row, which
        lie in one line or in two. Tensors are taken to start with a line.
        """
        network, reset = self.networks[op], op in ("native reset", "redo loop")
        reads = writes = 0
        for item in Kernel(network, None, reset).plan.items:
            units, axis = (item.columns, 1) if item.rows is None else (item.rows, 0)
            assert units is not None
            shape = [-1 if dim == axis else 1 for dim in range(item.tensor.dim())]
            revived = network.revived[units].view(shape).expand_as(item.tensor)
            written = _lines(revived, item.tensor.element_size())
            writes += LINE * int(written.sum())
            if "mean" in item.row_value + item.column_value or (not reset and item.row_value == "draw"):
                reads += LINE * int((~written).sum())
        return reads, writes


def _lines(elements: Tensor, item_bytes: int) -> Tensor:
    """Of each cache line of a contiguous tensor, whether it holds one of those elements."""
    per_line = LINE // item_bytes
    flat = elements.flatten()
    return functional.pad(flat, (0, -len(flat) % per_line)).view(-1, per_line).any(1)


def seconds_of_iteration(name: str, device: torch.device, pixels: int) -> float:
    """The fastest of some training steps: forward, backward, AdamW."""
    network = Network(name, device)
    x = torch.randn(BATCH, 3, pixels, pixels, device=device)
    labels = torch.randint(CLASSES, (BATCH,), device=device)

    def step() -> None:
        network.optimizer.zero_grad()
        functional.cross_entropy(network.model(x), labels).backward()
        network.optimizer.step()

    step()
    clock = clock_for(device)
    return min(clock(step) for _ in range(ITERATIONS))


def measure(name: str, steps: Steps, repeats: int, pixels: int) -> list[Row]:
    """A row per contestant."""
    device = steps.networks["loop"].revived.device
    clock = clock_for(device)
    iteration = seconds_of_iteration(name, device, pixels)
    times = take_turns(steps.contestants(), lambda: time.sleep(PAUSE), clock, repeats)
    bandwidth = memory.measure(memory.make_buffer(BANDWIDTH_BYTES, device), clock, 5)
    rows = []
    for op, own in times.items():
        reads, writes = steps.least_bytes(op)
        floor = reads / bandwidth.read + 2 * writes / bandwidth.copy
        found, loops = spread(own), times[LOOPS.get(op, op)]
        units = int(steps.networks[op].revived.sum())
        compared = found.median / iteration, ratios(loops, own)
        floors = (reads + 2 * writes) / 1e6, floor / found.median, spread(loops).median / floor
        rows.append(Row(name, op, units, repeats, found, *compared, *floors))
    one = Spread(iteration, iteration, iteration)
    return [*rows, Row(name, "iteration", 0, ITERATIONS, one, 1.0, Spread(1.0, 1.0, 1.0), 0.0, 0.0, 0.0)]


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = [
        "| model | step | units | median ms | p20 | p80 | of an iteration | x its loop | at the floor | floor | MB |",
        "| --- | --- | --: | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for row in rows:
        times = " | ".join(f"{1e3 * seconds:.2f}" for seconds in row.seconds)
        compared = f"{row.share_of_iteration:.2%} | {row.ratio_loop.median:.1f} | {row.ratio_floor:.1f}"
        compared += f" | {row.floor:.0%} | {row.megabytes:.0f}"
        lines.append(f"| {row.model} | {row.op} | {row.units} | {times} | {compared} |")
    return "\n".join(lines)


def missed_bars(rows: list[Row]) -> list[str]:
    """One line for each bar that was measured and missed."""
    missed = []
    for row in rows:
        if row.op == "native" and row.share_of_iteration > LARGEST_SHARE:
            missed.append(
                f"missed: {row.model}, {row.op}: {row.share_of_iteration:.1%} of an iteration, bar {LARGEST_SHARE:.0%}"
            )
        bar = FASTER.get(row.op)
        if bar and row.ratio_loop.median < bar:
            missed.append(
                f"missed: {row.model}, {row.op}: {row.ratio_loop.median:.1f} times faster than the {LOOPS[row.op]}, "
                f"bar {bar:g}"
            )
    return missed


def main(arguments: list[str] | None = None) -> int:
    """0, or 1 when a result is wrong or, with --check, a bar is missed."""
    parser = entry.make_parser(__doc__, "reactivation", REPEATS, ["resnet18"])
    parser.add_argument("--pixels", type=int, default=PIXELS, help=f"height and width of the images; default {PIXELS}")
    options = parser.parse_args(arguments)

    def measure_model(name: str, device: torch.device, repeats: int) -> list[Row]:
        steps = Steps(name, device)
        steps.verify()
        return measure(name, steps, repeats, options.pixels)

    settings = {"share": SHARE, "batch": BATCH, "pixels": options.pixels}
    return entry.run(options, measure_model, table, lambda rows, _: missed_bars(rows), settings)


if __name__ == "__main__":
    sys.exit(main())
