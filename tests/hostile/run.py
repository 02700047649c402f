"""Hostile use: random models, wrappers, dtypes, optimizers, surgery and calls. ``make hostile``.

Programs run in child processes, so that a crash or a hang is a finding like any other. Every finding names the seed
that repeats it: ``python -m tests.hostile.run --seed SEED --programs 1 --here``.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import re
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

CALLS = 12
"""In each program."""
_SUMMARY = re.compile(r"^(\d+) returned, (\d+) refused, (\d+) found$", re.MULTILINE)


def programs(first: int, count: int, log_path: str | None, limit: float) -> int:
    """Runs them in this process; the number of findings. The log file ends with what was going on."""
    import torch

    from tests.hostile.invariants import Violation
    from tests.hostile.program import run

    torch.set_num_threads(1)
    found = returned = refused = 0
    for seed in range(first, first + count):
        lines = [f"seed {seed}"]

        def log(line: str, lines: list[str] = lines) -> None:
            lines.append(line)
            faulthandler.dump_traceback_later(limit, exit=True)
            if log_path:
                Path(log_path).write_text("\n".join(lines))

        try:
            for done in run(seed, CALLS, log):
                returned, refused = returned + done, refused + (not done)
        except Violation as error:
            found += 1
            where = traceback.format_tb(error.__cause__.__traceback__)[-4:] if error.__cause__ else []
            print("FOUND", *lines, f"  {error}", *where, sep="\n", flush=True)
    print(f"{returned} returned, {refused} refused, {found} found", flush=True)
    return found


def in_children(first: int, count: int, each: int, limit: float) -> tuple[int, int, int]:
    """The same in child processes of ``each`` programs; after one that dies or hangs, the next follows it.

    Returns:
        Calls that returned, calls that were refused (those of a child that died count in neither), findings.
    """
    sums = [0, 0, 0]
    seed, end = first, first + count
    while seed < end:
        amount = min(each, end - seed)
        with tempfile.TemporaryDirectory() as folder:
            log, errors = Path(folder) / "log", Path(folder) / "errors"
            command = [sys.executable, "-m", "tests.hostile.run", "--here"]
            options = {"--seed": seed, "--programs": amount, "--log": log, "--limit": limit}
            with errors.open("w") as stderr:  # torch.export prints the graphs that it gives up
                done = subprocess.run(
                    command + [str(part) for option in options.items() for part in option],
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    text=True,
                    check=False,
                )
            print(done.stdout, end="", flush=True)
            seed += amount
            summary = _SUMMARY.search(done.stdout)
            if summary is not None and done.returncode in (0, 1):
                sums = [total + int(number) for total, number in zip(sums, summary.groups(), strict=True)]
                continue
            last = log.read_text() if log.exists() else "nothing was logged"
            print(f"DIED OR HUNG, status {done.returncode}\n{last}\n{errors.read_text()[-3000:]}", flush=True)
            sums[2] += 1 + done.stdout.count("FOUND\n")
            number = last.split("\n", 1)[0].removeprefix("seed ")
            seed = int(number) + 1 if number.isdigit() else seed
    return sums[0], sums[1], sums[2]


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 1 if there was a finding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the first program (default 0)")
    parser.add_argument("--programs", type=int, default=840, help=f"of {CALLS} calls each (default 840)")
    parser.add_argument("--each", type=int, default=60, help="programs in one child process (default 60)")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds of a call, then it hangs (default 60)")
    parser.add_argument("--here", action="store_true", help="in this process, to repeat a finding")
    parser.add_argument("--log", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if options.here:
        faulthandler.enable()
        return int(programs(options.seed, options.programs, options.log, options.limit) > 0)
    returned, refused, found = in_children(options.seed, options.programs, options.each, options.limit)
    print(f"in all: {returned} calls returned, {refused} refused, {found} findings")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
