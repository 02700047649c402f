"""Times the low-rank projection of real networks' weights against the released way, one SVD per layer.

Three contestants take turns: that way (`released_way`), the first projection of a training run (cold), and a later one
(warm: bases of the last projection, since which the weights have drifted). Nothing is timed before cold and warm are
shown to be as close to the weights as the reference's SVD. Prints a table and writes JSON.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

import we_kernels as wk
from benchmarks import entry, shapes
from benchmarks.timing import Contestant, Spread, clock_for, ratios, spread, take_turns
from benchmarks.verify import WrongResultError

REPEATS = {"resnet20": 20, "resnet56": 20, "resnet50": 3}
BARS = {
    "cpu": {("resnet56", "cold"): 4.0, ("resnet50", "cold"): 6.0, ("resnet50", "warm"): 10.0},
    "cuda": {("resnet50", "cold"): 20.0, ("resnet50", "warm"): 20.0},
}
"""At least so many times faster than one SVD per layer."""


@dataclass
class Row:
    """One contestant on one network."""

    model: str
    op: str
    layers: int
    repeats: int
    seconds: Spread
    ratio_svd: Spread


def released_way(weights: list[Tensor], ranks: list[int]) -> None:
    """What the authors' program (github.com/BZQLin/LRPET) does: layer by layer a thin SVD, then the product of all its
    columns, dropped ones included."""
    for weight, rank in zip(weights, ranks, strict=True):
        u, s, vt = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        transfer = s.norm() / s[:rank].norm()
        s = torch.cat((s[:rank] * transfer, torch.zeros_like(s[rank:])))
        weight.copy_((u @ s.diag() @ vt).view(weight.shape))


class Projection:
    """A network's convolutions before a first projection and, drifted since, before a later one.

    Args:
        model: a key of `shapes.MODELS`.
        prune_ratio: share of each layer's singular values that is dropped.
        drift: norm of the change since the last projection, relative to the weight's.
        device: of the weights.
    """

    def __init__(self, model: str, prune_ratio: float, drift: float, device: torch.device) -> None:
        self.first = shapes.make_weights(shapes.MODELS[model](), device=device).convs
        sides = [min(weight.shape[0], weight[0].numel()) for weight in self.first]
        self.ranks = [max(1, int(n - n * prune_ratio)) for n in sides]
        self.weights = [weight.clone() for weight in self.first]
        bases = wk.LowRankBases()
        wk.project_low_rank_(self.weights, self.ranks, bases=bases)
        self.bases = bases.state_dict()
        generator = torch.Generator().manual_seed(1)
        self.later = []
        for weight in self.weights:
            noise = torch.randn(weight.shape, generator=generator).to(device)
            self.later.append(weight + noise * (drift * weight.norm() / noise.norm()))

    def contestants(self) -> list[Contestant]:
        """The SVD first: it is the baseline."""
        return [
            Contestant("svd", lambda: self._prepared(self.first), lambda: released_way(self.weights, self.ranks)),
            Contestant("cold", lambda: self._prepared(self.first), self._project),
            Contestant("warm", lambda: self._prepared(self.later), self._project_warm),
        ]

    @contextmanager
    def _prepared(self, weights: list[Tensor]) -> Iterator[None]:
        torch._foreach_copy_(self.weights, weights)
        self.warm = wk.LowRankBases()
        self.warm.load_state_dict(self.bases)
        yield

    def _project(self) -> None:
        wk.project_low_rank_(self.weights, self.ranks)

    def _project_warm(self) -> None:
        wk.project_low_rank_(self.weights, self.ranks, bases=self.warm)

    def verify(self) -> None:
        """Both ways are at most 1e-4 farther from the weights than the SVD.

        Raises:
            WrongResultError: names the layer.
        """
        for op, weights, bases in (("cold", self.first, {}), ("warm", self.later, self.bases)):
            start = wk.LowRankBases()
            start.load_state_dict(bases)
            best, found = ([weight.clone() for weight in weights] for _ in range(2))
            with wk.use_backend("torch"):
                wk.project_low_rank_(best, self.ranks, energy_transfer=False)
            wk.project_low_rank_(found, self.ranks, energy_transfer=False, bases=start)
            for i, weight in enumerate(weights):
                distance, optimum = (float((weight - x).double().norm()) for x in (found[i], best[i]))
                if not distance <= optimum * (1 + 1e-4) + 1e-6 * float(weight.norm()):
                    raise WrongResultError(f"{op}, layer {i}: distance {distance:.6g}, by SVD {optimum:.6g}")


def measure(model: str, projection: Projection, device: torch.device, repeats: int) -> list[Row]:
    """A row per contestant."""
    times = take_turns(projection.contestants(), lambda: None, clock_for(device), repeats)
    return [
        Row(model, op, len(projection.ranks), repeats, spread(own), ratios(times["svd"], own))
        for op, own in times.items()
    ]


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = [
        "| model | projection | layers | median ms | p20 | p80 | x svd |",
        "| --- | --- | --: | --: | --: | --: | --: |",
    ]
    for row in rows:
        times = " | ".join(f"{1e3 * seconds:.2f}" for seconds in row.seconds)
        lines.append(f"| {row.model} | {row.op} | {row.layers} | {times} | {row.ratio_svd.median:.1f} |")
    return "\n".join(lines)


def missed_bars(rows: list[Row], device: torch.device) -> list[str]:
    """One line for each bar of this device's that was measured and missed."""
    bars = BARS[device.type]
    return [
        f"missed: {row.model}, {row.op}: {row.ratio_svd.median:.1f} times faster than svd, bar {bar:g}"
        for row in rows
        if (bar := bars.get((row.model, row.op))) and row.ratio_svd.median < bar
    ]


def main(arguments: list[str] | None = None) -> int:
    """0, or 1 when a result is wrong or, with --check, a bar is missed."""
    parser = entry.make_parser(__doc__, "low_rank", REPEATS, ["resnet56", "resnet50"])
    parser.add_argument("--prune-ratio", type=float, default=0.6)
    parser.add_argument(
        "--drift", type=float, default=0.1, help="change since the last projection / norm (default 0.1)"
    )
    options = parser.parse_args(arguments)

    def measure_model(model: str, device: torch.device, repeats: int) -> list[Row]:
        projection = Projection(model, options.prune_ratio, options.drift, device)
        projection.verify()
        return measure(model, projection, device, repeats)

    settings = {"prune_ratio": options.prune_ratio, "drift": options.drift}
    return entry.run(options, measure_model, table, missed_bars, settings)


if __name__ == "__main__":
    sys.exit(main())
