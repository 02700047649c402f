"""The results of a campaign as short tables, from its journal, however far it came.

Usage: ``python -m benchmarks.gpu_report JOURNAL``.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.journal import Journal
from benchmarks.results import Bar, Row, gpu_bars

Line = dict[str, Any]
TIMES = (
    *("network", "dtype", "by", "importance", "match", "crossover", "step", "step+norm"),
    *("eager", "host", "copy", "of copy"),
)
METHOD_KEYS = ("event", "method", "model")
VOIDED = {
    "importance": ("importance", "step", "step+norm"),
    "matching": ("match", "step", "step+norm"),
    "crossover": ("crossover", "step", "step+norm"),
    "evolution": ("step", "step+norm"),
    "steps": ("step", "step+norm"),
}
"""Group of tests -> the operations whose times count for nothing when it is red."""
FAILURES = 30
"""Failed tests that are shown."""


def report(journal: Journal) -> str:
    """All tables."""
    lines = journal.read()
    parts = [
        *(_headline(line) for line in lines if line["event"] == "versions"),
        table(("phase", "outcome", "s", "starts", ""), map(_phase, _of(lines, "phase ends"))),
        table(("group", "passed", "failed", "skipped", "not reached"), test_counts(lines)),
        table(("network", "dtype", "by", "kernels of a step in microseconds, in order"), kernel_lines(lines)),
        table(TIMES, times(lines)),
        table(("network", "method", "rows as they were measured"), methods(lines)),
        "\n".join(f"{backend:<7} {bar}" for backend, of_one in bars(lines).items() for bar in of_one if bar.measured),
        "\n".join([*failures(lines)[:FAILURES], *wrong(lines)]),
    ]
    return "\n\n".join(part for part in parts if part)


def table(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """Aligned; empty without lines."""
    cells = [header, *([str(cell) for cell in line] for line in lines)]
    if len(cells) == 1:
        return ""
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells)


def test_counts(lines: list[Line]) -> list[tuple[object, ...]]:
    """Group, passed, failed, skipped, found but without an ending."""
    ended = results_of_tests(lines)
    found: dict[str, int] = {}
    for line in _of(lines, "tests found"):
        found[line["job"]] = max(found.get(line["job"], 0), line["number"])
    rows: list[tuple[object, ...]] = []
    for group in sorted(found):
        counts = Counter(outcome for (job, _), (outcome, _) in ended.items() if job == group)
        missing = found[group] - sum(1 for job, test in ended if job == group and "::" in test)
        rows.append((group, *(counts[name] for name in ("passed", "failed", "skipped")), missing))
    return rows


def results_of_tests(lines: list[Line]) -> dict[tuple[str, str], tuple[str, str]]:
    """Group and test -> the worst outcome of its phases, and why."""
    order = ("passed", "skipped", "failed")
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for line in _of(lines, "test ends"):
        key, outcome = (line["job"], line["test"]), (line["outcome"], line.get("reason", ""))
        if key not in found or order.index(outcome[0]) > order.index(found[key][0]):
            found[key] = outcome
    return found


def failures(lines: list[Line]) -> list[str]:
    """Failed tests, and tests in which a process died."""
    ended = results_of_tests(lines)
    failed = [
        f"FAILED {job}: {test.split('/')[-1]}: {reason}"[:220]
        for (job, test), (outcome, reason) in ended.items()
        if outcome == "failed"
    ]
    died = [f"DIED {line['phase']}, status {line['status']}, {line['during']}" for line in _of(lines, "process died")]
    return [*died, *failed]


def kernel_lines(lines: list[Line]) -> list[tuple[object, ...]]:
    """One line per network, dtype and backend; of a graph where there is one."""
    steps: dict[tuple[str, str, str], dict[bool, list[Line]]] = {}
    for line in _of(lines, "kernel"):
        key = line["model"], line["dtype"], " ".join([line["backend"], *([line["op"]] if "op" in line else [])])
        steps.setdefault(key, {}).setdefault(line["in_graph"], []).append(line)
    return [
        (
            *key,
            " + ".join(
                f"{_short(kernel['name'])} {kernel['us']:.1f}" for kernel in modes.get(True, modes.get(False, []))
            ),
        )
        for key, modes in steps.items()
    ]


def times(lines: list[Line]) -> list[tuple[object, ...]]:
    """One line per network, dtype and contestant: microseconds of each operation in a graph (in brackets: eager, where
    there is no graph), and of the step also eager, the host's part and a copy of as many bytes."""
    found: dict[tuple[str, str, str], dict[str, Line]] = {}
    for row in _of(lines, "row"):
        op = row["op"].removeprefix("optimizer ")
        found.setdefault((row["model"], row["dtype"], row["backend"]), {})[op] = row
    void = void_operations(lines)
    return [
        (
            *key,
            *("void" if (key[2], op) in void else _best(rows.get(op)) for op in TIMES[3:8]),
            *_of_step(rows.get("step")),
        )
        for key, rows in found.items()
    ]


def methods(lines: list[Line]) -> list[tuple[object, ...]]:
    """One line per row of another method: the fields that say what it is, and its median times in microseconds."""
    rows = []
    for line in _of(lines, "row of a method"):
        words = [str(value) for key, value in line.items() if isinstance(value, str) and key not in METHOD_KEYS]
        medians = [
            f"{key} {_microseconds(value['median'])} us"
            for key, value in line.items()
            if isinstance(value, dict) and "median" in value and "ratio" not in key
        ]
        rows.append((line.get("model", ""), line["method"], ", ".join([*words, *medians])))
    return rows


def _best(row: Line | None) -> str:
    if row is None:
        return ""
    return _microseconds(row["graph"]["median"]) if row["graph"] else f"({_microseconds(row['seconds']['median'])})"


def _of_step(row: Line | None) -> tuple[str, ...]:
    if row is None:
        return ("", "", "", "")
    values = row["seconds"]["median"], row["host"]["median"], row["copy"]
    return *(_microseconds(value) for value in values), f"{row['floor_share']:.0%}"


def void_operations(lines: list[Line]) -> set[tuple[str, str]]:
    """Backend and operation whose kernels failed a test."""
    red = {job for (job, _), (outcome, _) in results_of_tests(lines).items() if outcome == "failed"}
    red |= {line["phase"] for line in _of(lines, "process died")}
    groups = [group.split("-", 1) for group in red if "-" in group]
    return {(backend, op) for backend, kernel in groups for op in VOIDED.get(kernel, ())}


def bars(lines: list[Line]) -> dict[str, list[Bar]]:
    """By backend; a row whose kernels failed a test counts as not measured."""
    void, fields = void_operations(lines), Row.__dataclass_fields__
    rows = [
        Row.from_json({key: value for key, value in line.items() if key in fields})
        for line in _of(lines, "row")
        if (line["backend"], line["op"]) not in void
    ]
    return {backend: gpu_bars(rows, backend) for backend in ("triton", "native")}


def missed_bars(journal: Journal) -> list[Bar]:
    """Bars that no backend meets, as the last one measured them."""
    both = zip(*bars(journal.read()).values(), strict=True)
    return [same[-1] for same in both if not any(bar.met for bar in same)]


def wrong(lines: list[Line]) -> list[str]:
    """What is wrong, raised an error or could not be measured."""
    told = dict.fromkeys(
        f"{line['event'].upper()} {line['model']} {line['dtype']} {line['backend']} {line.get('op', '')}: "
        f"{line.get('detail', line.get('reason', ''))}"[:220]
        for line in _of(lines, "wrong", "error")
    )
    reasons = dict.fromkeys(f"NOT MEASURED {x['backend']}: {x['reason']}"[:220] for x in _of(lines, "not measured"))
    return [*told, *reasons]


def is_red(journal: Journal) -> bool:
    """Whether a phase or a test failed, or a result is wrong."""
    lines = journal.read()
    bad_phase = any(
        line["outcome"] in ("failed", "timed out") for line in _of(lines, "phase ends") if line["phase"] != "versions"
    )
    return bad_phase or bool(_of(lines, "wrong", "error", "process died"))


def _of(lines: list[Line], *events: str) -> list[Line]:
    return [line for line in lines if line["event"] in events]


def _headline(line: Line) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in line["versions"].items())
    return f"{line.get('gpu', line['cpu'])}; {versions}; commit {line['commit']}"


def _phase(line: Line) -> tuple[object, ...]:
    return line["phase"], line["outcome"], line["seconds"], line["starts"], line["detail"]


def _microseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e6 * seconds:.1f}"


def _short(name: str) -> str:
    return name.split("(")[0].split("<")[0].split("::")[-1].removesuffix("_kernel")[-28:]


if __name__ == "__main__":
    print(report(Journal(Path(sys.argv[1]))))
