"""What reports and errors say, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with aligned columns, the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = [[cell.rjust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    return ["  ".join([row[0].ljust(widths[0]), *cells[1:]]) for row, cells in zip(rows, padded, strict=True)]


def first_line(error: BaseException) -> str:
    """Of an error of others' code, which may be long or empty."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def in_short(reasons: Mapping[str, str]) -> str:
    """Names with a reason each, for an error message: of each reason the first three names, and how many more."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return "; ".join(f"{_first_three(found)}: {reason}" for reason, found in names.items())


def _first_three(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
