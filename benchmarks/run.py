"""Times every backend on a CPU on the weights of real networks, prints one table and writes it as JSON.

See README.md here. A GPU is measured by gpu.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks import environment, released, results, shapes
from benchmarks.bench import Bench
from benchmarks.results import Row
from benchmarks.verify import WrongResultError

MODELS = ("resnet56", "mobilenetv2", "resnet50")
QUICK_MODELS = ("resnet20", "resnet56")
BUSY = 0.5
"""Load average above which the output says so."""


def main(arguments: list[str] | None = None) -> int:
    """0, or 1 when an implementation is wrong or a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=shapes.MODELS, help=f"default: {' '.join(MODELS)}")
    parser.add_argument("--threads", type=int, help="default: torch's")
    parser.add_argument("--repeats", type=int, help="timed rounds; default 30, with --quick 5")
    parser.add_argument("--quick", action="store_true", help="small networks, a small buffer: to try it out")
    parser.add_argument("--check", action="store_true", help="fail when a backend misses a bar")
    parser.add_argument("--released", type=Path, metavar="PATH", help=f"a clone of {released.REPOSITORY}")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/cpu_<date>.json")
    options = parser.parse_args(arguments)
    if options.check and options.quick:
        parser.error("--check: the bars are for the full run; leave out --quick")
    repeats = options.repeats if options.repeats is not None else 5 if options.quick else 30
    for name, value in (("--repeats", repeats), ("--threads", options.threads)):
        if value is not None and value < 1:
            parser.error(f"{name} must be positive, got {value}")
    try:
        program = released.ReleasedProgram(options.released) if options.released else None
    except released.NotAReleaseError as error:
        parser.error(str(error))
    if options.threads:
        torch.set_num_threads(options.threads)

    device = torch.device("cpu")
    described = environment.describe(device)
    if described["load_average"] > BUSY:
        load = described["load_average"]
        print(f"load average {load:.1f}: other programs run; trust neither times nor ratios", file=sys.stderr)
    bench = Bench(device, repeats, options.quick)
    models = options.models or (QUICK_MODELS if options.quick else MODELS)
    for name, reason in bench.skipped.items():
        print(f"not timed: {name}: {reason}", file=sys.stderr)
    rows: list[Row] = []
    try:
        for model in models:
            rows += bench.run(model, program)
    except WrongResultError as error:
        print(f"a result is wrong, so nothing is reported: {error}", file=sys.stderr)
        return 1

    result = {
        "schema": results.SCHEMA,
        **described,
        "quick": options.quick,
        "not_timed": {name: environment.without_paths(reason) for name, reason in bench.skipped.items()},
        "models": bench.models,
        "rows": [row.as_json() for row in rows],
    }
    write(result, options.output)
    print(results.headline(result))
    print(results.table(rows))
    print("".join(results.released_ratios(rows)), end="")
    return report_bars(results.bars(rows)) if options.check else 0


def write(result: dict[str, Any], output: Path | None) -> None:
    """As JSON, to ``output`` or under results/ by date."""
    if output is None:
        suffix = "_quick" if result["quick"] else ""
        output = Path(__file__).parent / "results" / f"cpu_{result['date']}{suffix}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {output}", file=sys.stderr)


def report_bars(bars: list[results.Bar]) -> int:
    """Prints every bar; 1 when one is missed."""
    print()
    for bar in bars:
        print(bar)
    return 0 if all(bar.met for bar in bars) else 1


if __name__ == "__main__":
    sys.exit(main())
