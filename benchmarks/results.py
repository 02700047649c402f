"""Rows of a result, the table that is printed and the bars that are checked."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from timing import Spread

SCHEMA = 1
"""Of the JSON; counts up when a field changes its meaning."""

RATIO_BARS = {"resnet56": 25.0, "mobilenetv2": 10.0, "resnet50": 6.0}
"""A whole evolution (BatchNorms too, rate 0.2) by the native backend, times faster than `baselines.PerLayer`."""
FLOOR_BARS = {"resnet50": 0.55}
"""The convolutions' step by the native backend: share of the read floor, at the network's published rate. At 0.2 a
sixth of the filters are rewritten, so that even a step at the floor of all its bytes has 66% of the read floor."""
BAR_RATE = 0.2
FLOOR_RATE = 0.02
RELEASED = "released program"


@dataclass
class Row:
    """One implementation of one operation on one network."""

    model: str
    op: str
    rate: float | None
    backend: str
    repeats: int
    seconds: Spread
    ratio_per_layer: Spread | None
    ratio_torch: Spread | None
    bytes_moved: int
    """What the operation cannot avoid to read and write."""
    gb_per_s: float
    """``bytes_moved`` per median second, 1e9 bytes."""
    read_floor_share: float | None
    """Time to read all weights once, as a share of the median time; whole steps and importances only."""
    floor_share: float | None
    """Time to move ``bytes_moved`` at the read bandwidth, as a share of the median time."""

    def as_json(self) -> dict[str, Any]:
        """A spread as an object of median, p20 and p80."""
        values = asdict(self)
        for key in ("seconds", "ratio_per_layer", "ratio_torch"):
            value = getattr(self, key)
            values[key] = None if value is None else value._asdict()
        return values


@dataclass
class Bar:
    """A bar and what was measured; None: not measured."""

    model: str
    what: str
    required: float
    measured: float | None

    @property
    def met(self) -> bool:
        return self.measured is not None and self.measured >= self.required

    def __str__(self) -> str:
        measured = "not measured" if self.measured is None else f"{self.measured:.2f}"
        return f"{'met   ' if self.met else 'MISSED'}  {self.model}: {self.what}: {measured}, bar {self.required:g}"


def bars(rows: list[Row]) -> list[Bar]:
    """Every bar against the rows of the native backend."""
    native = {(row.model, row.op, row.rate): row for row in rows if row.backend == "native"}
    result = []
    for model, required in RATIO_BARS.items():
        row = native.get((model, "step+norm", BAR_RATE))
        ratio = row.ratio_per_layer if row else None
        result.append(Bar(model, "times faster than per_layer", required, ratio.median if ratio else None))
    for model, required in FLOOR_BARS.items():
        row = native.get((model, "step", FLOOR_RATE))
        result.append(Bar(model, "share of the read floor", required, row.read_floor_share if row else None))
    return result


def released_ratios(rows: list[Row]) -> list[str]:
    """How many times faster than the released program each other implementation is, one line each."""
    released = {(row.model, row.op): row for row in rows if row.backend == RELEASED}
    return [
        f"{row.model}, {row.op}: {row.backend} is {released[key].seconds.median / row.seconds.median:.0f} times "
        "faster than the released program\n"
        for row in rows
        if (key := (row.model, row.op)) in released and row.backend != RELEASED
    ]


def headline(result: dict[str, Any]) -> str:
    """One line on where a result comes from."""
    versions = result["versions"]
    return (
        f"{result.get('gpu') or result['cpu']}, {result['threads']} threads, torch {versions['torch']}, "
        f"triton {versions['triton']}, native extension: {versions['native extension']}; commit {result['commit']}\n"
    )


HEADER = (
    "model",
    "op",
    "rate",
    "backend",
    "median ms",
    "p20",
    "p80",
    "x per_layer",
    "x torch",
    "MB moved",
    "GB/s",
    "of read floor",
    "of floor",
)


def table(rows: list[Row]) -> str:
    """Aligned, and valid Markdown."""
    lines = [HEADER, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
    texts = []
    for line in lines:
        cells = (c.ljust(w) if i < 4 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        texts.append("| " + " | ".join(cells) + " |")
    rule = "| " + " | ".join("-" * w if i < 4 else "-" * (w - 1) + ":" for i, w in enumerate(widths)) + " |"
    return "\n".join([texts[0], rule, *texts[1:]])


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.model,
        row.op,
        "" if row.rate is None else f"{row.rate:g}",
        row.backend,
        *(f"{1e3 * seconds:.3f}" for seconds in row.seconds),
        *("" if ratio is None else f"{ratio.median:.3g}" for ratio in (row.ratio_per_layer, row.ratio_torch)),
        f"{row.bytes_moved / 1e6:.2f}",
        f"{row.gb_per_s:.1f}",
        *("" if share is None else f"{share:.0%}" for share in (row.read_floor_share, row.floor_share)),
    )
