"""Hostile use: random models, wrappers, dtypes, optimizers, surgery and calls. ``make hostile``.

Programs run in child processes, so that a crash or a hang is a finding like any other. Every finding names the seed
that repeats it: ``python tests/hostile/run.py --seed SEED --programs 1 --here``.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CALLS = 12
"""In each program."""
TIME_LIMIT = 120.0
"""Seconds for the programs of one child."""
HERE = Path(__file__).resolve()


def programs(first: int, count: int, log_path: str | None) -> int:
    """Runs them in this process; the number of findings. The log file ends with what was going on."""
    import torch
    from invariants import Violation
    from program import run

    torch.set_num_threads(1)
    found = returned = refused = 0
    for seed in range(first, first + count):
        lines = [f"seed {seed}"]

        def log(line: str, lines: list[str] = lines) -> None:
            lines.append(line)
            if log_path:
                Path(log_path).write_text("\n".join(lines))

        try:
            for done in run(seed, CALLS, log):
                returned, refused = returned + done, refused + (not done)
        except Violation as error:
            found += 1
            cause = error.__cause__
            print("FOUND", *lines, f"  {error}", *([_where(cause)] if cause else []), sep="\n", flush=True)
    print(f"{returned} returned, {refused} refused, {found} found", flush=True)
    return found


def _where(error: BaseException) -> str:
    import traceback

    return "".join(traceback.format_tb(error.__traceback__)[-4:])


def in_children(first: int, count: int, each: int) -> int:
    """The same in child processes of ``each`` programs; one that dies or hangs is a finding, the next follows it."""
    found, seed = 0, first
    while seed < first + count:
        amount = min(each, first + count - seed)
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "log"
            command = [sys.executable, str(HERE), "--seed", str(seed), "--programs", str(amount), "--here"]
            try:
                done = subprocess.run(
                    [*command, "--log", str(log)], stdout=subprocess.PIPE, text=True, timeout=TIME_LIMIT, check=False
                )
                status, output = done.returncode, done.stdout
            except subprocess.TimeoutExpired as error:
                status, output = -1, str(error.stdout or "")
            print(output, end="", flush=True)
            found += output.count("FOUND\n")
            seed += amount
            if status not in (0, 1):
                found += 1
                last = log.read_text() if log.exists() else "nothing was logged"
                print(f"DIED OR HUNG, status {status}\n{last}", flush=True)
                number = last.split("\n", 1)[0].removeprefix("seed ")
                seed = int(number) + 1 if number.isdigit() else seed
    return found


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 1 if there was a finding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the first program (default 0)")
    parser.add_argument("--programs", type=int, default=840, help=f"of {CALLS} calls each (default 840)")
    parser.add_argument("--each", type=int, default=60, help="programs in one child process (default 60)")
    parser.add_argument("--here", action="store_true", help="in this process, to repeat a finding")
    parser.add_argument("--log", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if options.here:
        faulthandler.enable()
        return int(programs(options.seed, options.programs, options.log) > 0)
    found = in_children(options.seed, options.programs, options.each)
    print(f"{options.programs * CALLS} calls, {found} findings")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
