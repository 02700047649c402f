"""Rows of a result, the table that is printed and the bars that are checked."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.timing import Spread

SCHEMA = 2
"""Of the JSON; counts up when a field changes its meaning."""

RATIO_BARS = {"resnet56": 25.0, "mobilenetv2": 10.0, "resnet50": 6.0}
"""A whole evolution (BatchNorms too, rate 0.2) by the native backend, times faster than `baselines.PerLayer`."""
FLOOR_BARS = {"resnet50": 0.55}
"""The convolutions' step by the native backend: share of the read floor, at the network's published rate. At 0.2 a
sixth of the filters are rewritten, so that even a step at the floor of all its bytes has 66% of the read floor."""
BAR_RATE = 0.2
FLOOR_RATE = 0.02
RELEASED = "released program"

ADAMW, SGD = "AdamW(fused=True)", "SGD(foreach=True)"
GPU_FLOOR_BARS = {("resnet50", "float32"): 1.6, ("resnet50", "bfloat16"): 2.2, ("stack_1b", "float32"): 1.3}
"""Times as long as a copy of the same bytes, at most."""
GPU_TIME_BARS = {"resnet20": 25.0}
GPU_OPTIMIZER_BARS = {"resnet50": 0.5, "stack_1b": 0.5}
GPU_HOST_BARS = {"resnet50": 100.0}
SPREADS = ("seconds", "ratio_per_layer", "ratio_torch", "graph", "host")
"""Fields of a row."""


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
    """Time to move ``bytes_moved`` at the read bandwidth, as a share of the median time. In the GPU's suite: the time
    of a copy within the device that reads and writes as many bytes, as a share of the median time in a graph."""
    dtype: str = "float32"
    graph: Spread | None = None
    """Seconds of the operation replayed as a CUDA graph; None where it waits for the device, and on a CPU."""
    host: Spread | None = None
    """Seconds until the call returned to the host; backends in the GPU's suite only."""

    def as_json(self) -> dict[str, Any]:
        """A spread as an object of median, p20 and p80."""
        values = asdict(self)
        for key in SPREADS:
            value = getattr(self, key)
            values[key] = None if value is None else value._asdict()
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Row:
        """What `as_json` made."""
        spreads = {key: values[key] and Spread(**values[key]) for key in SPREADS}
        return cls(**values | spreads)


@dataclass
class Bar:
    """A bar and what was measured; None: not measured."""

    model: str
    what: str
    required: float
    measured: float | None
    at_most: bool = False

    @property
    def met(self) -> bool:
        if self.measured is None:
            return False
        return self.measured <= self.required if self.at_most else self.measured >= self.required

    def __str__(self) -> str:
        measured = "not measured" if self.measured is None else f"{self.measured:.2f}"
        bar = f"{'at most' if self.at_most else 'at least'} {self.required:g}"
        return f"{'met   ' if self.met else 'MISSED'}  {self.model}: {self.what}: {measured}, bar {bar}"


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


def gpu_bars(rows: list[Row], backend: str) -> list[Bar]:
    """The bars for an H100 or H200, of a backend's whole steps at rate 0.2 in a graph; times are medians."""
    found = {(row.model, row.dtype, row.op, row.backend): row for row in rows}

    def graph(model: str, dtype: str = "float32", op: str = "step", by: str = backend) -> float | None:
        row = found.get((model, dtype, op, by))
        return row.graph.median if row and row.graph else None

    def ratio(over: float | None, under: float | None) -> float | None:
        return None if over is None or under is None else over / under

    result = []
    for (model, dtype), times in GPU_FLOOR_BARS.items():
        row = found.get((model, dtype, "step", backend))
        share = row.floor_share if row else None
        result.append(Bar(model, f"times its floor, {dtype}", times, ratio(1.0, share), at_most=True))
    for model, microseconds in GPU_TIME_BARS.items():
        result.append(Bar(model, "microseconds", microseconds, ratio(graph(model), 1e-6), at_most=True))
    for model, share in GPU_OPTIMIZER_BARS.items():
        adamw = graph(model, op="optimizer step", by=ADAMW)
        result.append(Bar(model, "of a fused AdamW step", share, ratio(graph(model), adamw), at_most=True))
    for model, microseconds in GPU_HOST_BARS.items():
        row = found.get((model, "float32", "step", backend))
        host = row.host.median if row and row.host else None
        result.append(Bar(model, "microseconds of the host", microseconds, ratio(host, 1e-6), at_most=True))
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
    "dtype",
    "op",
    "rate",
    "backend",
    "median ms",
    "p20",
    "p80",
    "graph ms",
    "host us",
    "x per_layer",
    "x torch",
    "MB moved",
    "GB/s",
    "of read floor",
    "of floor",
)
TEXT_COLUMNS = 5


def table(rows: list[Row]) -> str:
    """Aligned, and valid Markdown."""
    lines = [HEADER, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADER))]
    texts = []
    for line in lines:
        cells = (
            c.ljust(w) if i < TEXT_COLUMNS else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        texts.append("| " + " | ".join(cells) + " |")
    rule = "| " + " | ".join("-" * w if i < TEXT_COLUMNS else "-" * (w - 1) + ":" for i, w in enumerate(widths)) + " |"
    return "\n".join([texts[0], rule, *texts[1:]])


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.model,
        row.dtype,
        row.op,
        "" if row.rate is None else f"{row.rate:g}",
        row.backend,
        *(f"{1e3 * seconds:.3f}" for seconds in row.seconds),
        "" if row.graph is None else f"{1e3 * row.graph.median:.3f}",
        "" if row.host is None else f"{1e6 * row.host.median:.0f}",
        *("" if ratio is None else f"{ratio.median:.3g}" for ratio in (row.ratio_per_layer, row.ratio_torch)),
        f"{row.bytes_moved / 1e6:.2f}",
        f"{row.gb_per_s:.1f}",
        *("" if share is None else f"{share:.0%}" for share in (row.read_floor_share, row.floor_share)),
    )
