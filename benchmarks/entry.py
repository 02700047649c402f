"""What the benchmarks of single methods share: options, verification before timing, table and file of results."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import environment
from benchmarks.journal import Journal
from benchmarks.timing import Spread
from benchmarks.verify import WrongResultError


def make_parser(
    description: str | None, name: str, repeats: Mapping[str, int], models: Sequence[str]
) -> argparse.ArgumentParser:
    """The options that all have.

    Args:
        description: of the benchmark.
        name: what its result files' names begin with.
        repeats: model -> timed rounds.
        models: the default ones.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=repeats, default=models)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="default: torch's")
    parser.add_argument("--repeats", type=int, help=f"timed rounds; default {repeats}")
    parser.add_argument("--check", action="store_true", help="fail when a bar is missed (a CPU's are for two threads)")
    parser.add_argument("--output", type=Path, help=f"default: benchmarks/results/{name}_<cpu or gpu>_<date>.json")
    parser.add_argument("--journal", type=Path, help="also append each network's rows there, as soon as it is measured")
    parser.set_defaults(name=name, rounds=repeats)
    return parser


def run(
    options: argparse.Namespace,
    measure: Callable[[str, torch.device, int], list[Any]],
    table: Callable[[list[Any]], str],
    missed_bars: Callable[[list[Any], torch.device], list[str]],
    settings: Mapping[str, Any],
) -> int:
    """Measures every model, writes JSON and prints a table; 0, or 1 when a result is wrong or a bar is missed.

    Args:
        options: of a parser made by `make_parser`.
        measure: model, device and repeats -> rows (dataclasses), or a WrongResultError before anything is timed.
        table: of all rows.
        missed_bars: one line for each; asked with ``--check``.
        settings: stands in the file before the rows; read when all is measured.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    described = environment.describe(device)
    rows: list[Any] = []
    try:
        for model in options.models:
            found = measure(model, device, options.repeats or options.rounds[model])
            rows += found
            if options.journal:
                for row in found:
                    Journal(options.journal).write("row of a method", method=options.name, **_as_fields(row))
    except WrongResultError as error:
        print(f"{model}: a result is wrong, so nothing is reported: {error}", file=sys.stderr)
        return 1

    result = {"schema": 1, **described, **settings, "rows": [_as_fields(row) for row in rows]}
    kind = "gpu" if device.type == "cuda" else "cpu"
    output = options.output or Path(__file__).parent / "results" / f"{options.name}_{kind}_{described['date']}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {output}", file=sys.stderr)
    print(table(rows))
    missed = missed_bars(rows, device) if options.check else []
    print("".join(f"{line}\n" for line in missed), end="")
    return 1 if missed else 0


def _as_fields(row: Any) -> dict[str, Any]:
    return {key: value._asdict() if isinstance(value, Spread) else value for key, value in asdict(row).items()}
