"""Times a graft of two networks' convolutions: both networks' entropies, the coefficients, the blend of the ring.

Contestants take turns: vectorised PyTorch (one histogram per tensor, foreach lerp), this package's graft, its two parts
alone, and, with a clone of their repository, the authors' functions. Nothing is timed before the graft is shown to be
the reference's and PyTorch's, too. The floor is the time to read and write every weight of both networks once, at the
read bandwidth of the memory they lie in, measured in the same run. Prints a table and writes JSON.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import we_kernels as wk
from benchmarks import entry, memory, shapes
from benchmarks.released import NotAReleaseError
from benchmarks.released_grafting import REPOSITORY, ReleasedGraft
from benchmarks.timing import Contestant, Spread, clock_for, ratios, spread, take_turns
from benchmarks.verify import WrongResultError

REPEATS = {"resnet20": 50, "resnet56": 50, "mobilenetv2": 50, "resnet50": 10}
STRENGTH, SHARPNESS, BINS = 0.4, 500.0, 10
BANDWIDTH_BYTES = 256 << 20
ROUNDED = 0.0051
"""How far a coefficient of two decimals may be from ours."""
FASTER = {("cpu", "mobilenetv2"): 5.0}
"""At least so many times faster than PyTorch."""
FROM_FLOOR = {("cpu", "resnet50"): 2.5}
"""At most so many times the floor."""


@dataclass
class Row:
    """One contestant on one pair of networks."""

    model: str
    op: str
    layers: int
    repeats: int
    seconds: Spread
    ratio_pytorch: Spread
    times_floor: float


def coefficients(entropy: Tensor) -> Tensor:
    """Of the entropies [2, L]: how much each network keeps of its own weights, layer by layer."""
    return STRENGTH / math.pi * torch.atan(SHARPNESS * (entropy - entropy.roll(1, 0))) + 0.5


def pytorch_entropy(weights: list[Tensor]) -> Tensor:
    """One call per histogram (which finds minimum and maximum itself), the rest for all tensors at once."""
    counts = torch.stack([torch.histc(weight, BINS) for weight in weights])
    sizes = torch.tensor([weight.numel() for weight in weights], dtype=counts.dtype, device=counts.device)
    counts[:, -1] -= 1  # the maximum, which `histc` puts into the last bin
    return torch.special.entr(counts / sizes[:, None]).sum(1)


def pytorch_blend(first: list[Tensor], second: list[Tensor], coefficient: Tensor) -> None:
    """Foreach lerp, with a copy of one network."""
    shares = (1 - coefficient).tolist()
    new = torch._foreach_lerp(first, second, shares[0])
    torch._foreach_lerp_(second, first, shares[1])
    torch._foreach_copy_(first, new)


class Graft:
    """Two networks of different weights.

    Args:
        model: a key of `shapes.MODELS`.
        device: of the weights.
        program: the authors', to be timed as well.
    """

    def __init__(self, model: str, device: torch.device, program: ReleasedGraft | None = None) -> None:
        self.before = [shapes.make_weights(shapes.MODELS[model](), seed, device).convs for seed in (0, 1)]
        given = [weight for network in self.before for weight in network]
        self.num_bytes = sum(weight.numel() * weight.element_size() for weight in given)
        cache = memory.last_level_cache(device)
        self.in_cache = 2 * self.num_bytes <= cache
        least = self.num_bytes + 64 * len(given) + 4 * memory.COLUMNS
        self.buffer = memory.make_buffer(least if self.in_cache else max(least, BANDWIDTH_BYTES, 8 * cache), device)
        placed = memory.place(given, self.buffer)
        self.weights = [placed[: len(self.before[0])], placed[len(self.before[0]) :]]
        self.banks = [wk.FilterBank(network) for network in self.weights]
        self.released = program and program.step(self.weights, STRENGTH, SHARPNESS)

    def contestants(self) -> list[Contestant]:
        """PyTorch first: it is the baseline."""
        self.coefficients = coefficients(torch.stack([wk.weight_entropy(bank) for bank in self.banks]))
        released = [Contestant("released", self.prepared, self.released)] if self.released else []
        return [
            Contestant("pytorch", self.prepared, self.pytorch),
            Contestant("graft", self.prepared, self.graft),
            Contestant("entropy", self.prepared, lambda: [wk.weight_entropy(bank, BINS) for bank in self.banks]),
            Contestant("blend", self.prepared, lambda: wk.blend_ring_(self.banks, self.coefficients)),
            *released,
        ]

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """The weights as they were; not in a cache, unless they and the copy fit."""
        for network, before in zip(self.weights, self.before, strict=True):
            torch._foreach_copy_(network, before)
        if not self.in_cache:
            self.buffer.sum()
        yield

    def graft(self) -> Tensor:
        """This package's; on a GPU, too, it does not wait."""
        entropy = torch.stack([wk.weight_entropy(bank, BINS, check_finite=False) for bank in self.banks])
        coefficient = coefficients(entropy)
        wk.blend_ring_(self.banks, coefficient, per="tensor")
        return entropy

    def pytorch(self) -> Tensor:
        """The baseline."""
        entropy = torch.stack([pytorch_entropy(network) for network in self.weights])
        pytorch_blend(*self.weights, coefficients(entropy))
        return entropy

    def verify(self) -> None:
        """Entropies and weights against the torch backend, and against PyTorch's from equal coefficients.

        PyTorch's histogram puts single elements near an edge, the maximum among them, into another bin.

        Raises:
            WrongResultError: names what differs.
        """
        with self.prepared():
            theirs = torch.stack([pytorch_entropy(network) for network in self.weights])
            entropy = self.graft()
        result = [weight.clone() for network in self.weights for weight in network]
        with self.prepared(), wk.use_backend("torch"):
            if not torch.equal(self.graft(), entropy):
                raise WrongResultError("entropies differ from the reference")
        self._compare(result, "the reference")
        sizes = torch.tensor([float(weight.numel()) for weight in self.weights[0]], device=theirs.device)
        far = (theirs - entropy).abs() > 4 * sizes.log() / sizes + 1e-5
        if bool(far.any()):
            raise WrongResultError(f"entropies differ from PyTorch's in layer {int(far.any(0).nonzero()[0])}")
        with self.prepared():
            pytorch_blend(*self.weights, coefficients(entropy))
        self._compare(result, "PyTorch")
        if self.released:
            with self.prepared():
                self.released()
            self._compare(result, "the released program", ROUNDED)

    def _compare(self, result: list[Tensor], with_what: str, coefficient_error: float = 0.0) -> None:
        layers = len(self.weights[0])
        expected = [weight for network in self.weights for weight in network]
        for i, (found, wanted) in enumerate(zip(result, expected, strict=True)):
            apart = (self.before[0][i % layers] - self.before[1][i % layers]).abs().max()
            allowed = 1e-6 * float(wanted.abs().max()) + coefficient_error * float(apart)
            if not float((found - wanted).abs().max()) <= allowed:
                raise WrongResultError(f"network {i // layers}, layer {i % layers}: weights differ from {with_what}'s")


def measure(model: str, graft: Graft, device: torch.device, repeats: int) -> tuple[list[Row], memory.Bandwidth]:
    """A row per contestant, and the bandwidth that the floor was computed with."""
    clock = clock_for(device)
    bandwidth = memory.measure(graft.buffer, clock, repeats)
    times = take_turns(graft.contestants(), lambda: None, clock, repeats)
    bandwidth = memory.best(bandwidth, memory.measure(graft.buffer, clock, repeats))
    floor = 2 * graft.num_bytes / bandwidth.read
    layers = len(graft.weights[0])
    rows = []
    for op, own in times.items():
        taken = spread(own)
        rows.append(Row(model, op, layers, repeats, taken, ratios(times["pytorch"], own), taken.median / floor))
    return rows, bandwidth


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = [
        "| model | op | layers | median ms | p20 | p80 | x pytorch | times the floor |",
        "| --- | --- | --: | --: | --: | --: | --: | --: |",
    ]
    for row in rows:
        times = " | ".join(f"{1e3 * seconds:.2f}" for seconds in row.seconds)
        ratio = f"{row.ratio_pytorch.median:.1f} | {row.times_floor:.2f}"
        lines.append(f"| {row.model} | {row.op} | {row.layers} | {times} | {ratio} |")
    return "\n".join(lines)


def missed_bars(rows: list[Row], device: torch.device) -> list[str]:
    """One line for each bar of this device's that was measured and missed."""
    missed = []
    for row in (row for row in rows if row.op == "graft"):
        ratio, key = row.ratio_pytorch.median, (device.type, row.model)
        if ratio < (bar := FASTER.get(key, 0.0)):
            missed.append(f"missed: {row.model}: {ratio:.1f} times faster than PyTorch, bar {bar:g}")
        if row.times_floor > (bar := FROM_FLOOR.get(key, math.inf)):
            missed.append(f"missed: {row.model}: {row.times_floor:.2f} times the floor, bar {bar:g}")
    return missed


def main(arguments: list[str] | None = None) -> int:
    """0, or 1 when a result is wrong or, with --check, a bar is missed."""
    parser = entry.make_parser(__doc__, "grafting", REPEATS, ["mobilenetv2", "resnet50"])
    parser.add_argument("--released", type=Path, metavar="PATH", help=f"a clone of {REPOSITORY}")
    options = parser.parse_args(arguments)
    try:
        released = ReleasedGraft(options.released) if options.released else None
    except NotAReleaseError as error:
        parser.error(str(error))
    bandwidths = {}

    def measure_model(model: str, device: torch.device, repeats: int) -> list[Row]:
        graft = Graft(model, device, released)
        graft.verify()
        rows, bandwidth = measure(model, graft, device, repeats)
        bandwidths[model] = bandwidth._asdict() | {"fits_in_cache": graft.in_cache, "weight_bytes": graft.num_bytes}
        return rows

    return entry.run(options, measure_model, table, missed_bars, {"bandwidth": bandwidths})


if __name__ == "__main__":
    sys.exit(main())
