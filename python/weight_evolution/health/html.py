"""A report as one HTML page that needs no other file, no script and no network."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from html import escape

from .figure import draw
from .report import HealthReport, cells, headings, is_active

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 75rem; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 0.2rem 0.6rem; text-align: right; border-bottom: 1px solid #ddd; }
th:first-child, td:first-child { text-align: left; }
thead th { position: sticky; top: 0; background: #fff; }
.wide { overflow-x: auto; } svg { max-width: 100%; height: auto; }
"""


def page(report: HealthReport, title: str) -> str:
    """The whole document."""
    layers = report.layers
    active = is_active(layers)
    left_out = [*report.skipped.items(), *report.without_activity.items()]
    parts = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(report.summary())}</p>",
        "<h2>Advice</h2>",
        _list(report.advice),
        "<h2>What the methods would do</h2>",
        _list(f"{preview.method}: {preview.sentence}" for preview in report.previews.values()),
        "<h2>Layers</h2>",
        f'<div class="wide">{_svg(report)}</div>',
        f'<div class="wide">{_table(headings(active), [cells(name, layer, active) for name, layer in layers.items()])}'
        "</div>",
    ]
    if left_out:
        parts += ["<h2>Not measured</h2>", _list(f"{name}: {reason}" for name, reason in left_out)]
    head = f"<title>{escape(title)}</title><style>{_STYLE}</style>"
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
            f'<meta name="viewport" content="width=device-width">{head}</head>\n<body>',
            *parts,
            "</body></html>\n",
        ]
    )


def _svg(report: HealthReport) -> str:
    file = io.StringIO()
    draw(list(report.layers.items())).savefig(file, format="svg", metadata={"Date": None})
    return re.sub(r"^.*?(?=<svg)", "", file.getvalue(), flags=re.DOTALL)  # without the XML declaration


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    first = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f"<table><thead><tr>{first}</tr></thead><tbody>\n{body}</tbody></table>"


def _list(items: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"
