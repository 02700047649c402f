"""First contact with a GPU, in minutes that are counted: ``make gpu-first``, then ``make gpu``.

Uses what is installed (torch, Triton, nvcc, CMake, ninja, pytest) and no network. Everything goes to a folder, at once:
when the program is killed, all results so far are there. Ends with status 0, 1 (something failed) or 2 (no GPU).
"""

from __future__ import annotations

import argparse
import datetime
import os
import signal
import sys
import time
from pathlib import Path

from benchmarks import gpu_report
from benchmarks.journal import Journal
from benchmarks.phases import Phase, Runner
from benchmarks.stages import ROOT, Stage, environment_of_children

BUDGETS = {"first": 325.0, "second": 355.0}
"""Seconds of a stage."""


def main(arguments: list[str] | None = None) -> int:
    """Exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=BUDGETS)
    parser.add_argument("--output", type=Path, help="folder of the results; default: build/gpu-results/TIME")
    parser.add_argument("--commit", help="of the tree; default: what git says")
    parser.add_argument("--budget", type=float, help=f"seconds; default {BUDGETS}")
    parser.add_argument("--check", action="store_true", help="fail when no backend meets a bar")
    parser.add_argument("--dry-run", action="store_true", help="a little of everything, on the CPU if need be")
    options = parser.parse_args(arguments)
    begin = time.time()
    folder = (options.output or ROOT / "build/gpu-results" / f"{datetime.datetime.now():%Y-%m-%d_%H-%M-%S}").resolve()
    results, log, tests_log = (folder / f"{options.stage}{end}" for end in (".jsonl", ".log", "-tests.log"))
    if existing := [path for path in (results, log, tests_log) if path.exists()]:
        parser.error(f"--output: {existing[0]} is there already; name another folder, or take it away")
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.update(environment_of_children())
    if options.commit:
        os.environ["WE_COMMIT"] = options.commit
    budget = options.budget or BUDGETS[options.stage] * (3 if options.dry_run else 1)
    runner = Runner(Journal(results), log, ROOT, begin + budget)
    signal.signal(signal.SIGTERM, lambda *_: _leave(runner))
    signal.signal(signal.SIGINT, lambda *_: _leave(runner))
    print(f"results: {folder}", flush=True)

    runner.run(Phase("versions", [sys.executable, "-m", "benchmarks.versions", str(results)], 90))
    described = next(iter(runner.journal.read("versions")), {})
    on_gpu = described.get("device") == "cuda"
    if not on_gpu and not options.dry_run:
        print(
            "a campaign needs an NVIDIA GPU and a torch built for CUDA: torch.cuda.is_available() is False. Without "
            "one, `make test` covers what can be shown; docs/gpu.md says what. --dry-run tries the stages themselves.",
            file=sys.stderr,
        )
        return 2
    device, capability = "cuda" if on_gpu else "cpu", described.get("capability", "90")
    stage = Stage(runner, results, tests_log, device, capability, begin, options.dry_run)
    getattr(stage, options.stage)()
    print(gpu_report.report(runner.journal), flush=True)
    missed = gpu_report.missed_bars(runner.journal) if options.check else []
    print("".join(f"by every backend: {bar}\n" for bar in missed), end="")
    return 1 if missed or gpu_report.is_red(runner.journal) else 0


def _leave(runner: Runner) -> None:
    runner.kill()
    os._exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
