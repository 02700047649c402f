"""Commands one after the other within a budget of time: each may be required, and each says how it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

LOGS = Path("build/gpu-logs")
TAIL = 40
"""Lines of a failed command's output that are shown."""


@dataclass
class Phase:
    """One command."""

    name: str
    command: Sequence[str]
    limit: float
    """Seconds it may take at most."""
    required: bool = True
    """Without its success, the timings count for nothing, and none are taken."""
    timing: bool = False
    """It measures: it runs only while every required phase has passed."""
    may_time_out: bool = False
    """Running out of time does not make it red, only unfinished."""
    skip: str = ""
    """Why it is not run at all."""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Ending:
    """How a phase ended."""

    name: str
    outcome: str
    """"passed", "failed", "timed out" or "skipped"."""
    seconds: float
    detail: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.name:<28} {self.outcome:<10} {self.seconds:6.1f} s  {self.detail}".rstrip()


def run(phases: Sequence[Phase], budget: float, folder: Path) -> list[Ending]:
    """Runs the phases; whatever is left to do when ``budget`` seconds are over is cut off or skipped.

    The output of each goes to a file in build/gpu-logs; the end of it is printed if the command fails.

    Args:
        phases: in order.
        budget: seconds.
        folder: where the commands run.
    """
    logs = folder / LOGS
    logs.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + budget
    endings: list[Ending] = []
    red = False
    for phase in phases:
        left = min(phase.limit, deadline - time.monotonic())
        if phase.skip:
            ending = Ending(phase.name, "skipped", 0.0, phase.skip)
        elif phase.timing and red:
            ending = Ending(phase.name, "skipped", 0.0, "a required phase is red, so timings would be void")
        elif left < 1:
            ending = Ending(phase.name, "skipped", 0.0, "no time is left")
        else:
            ending = _run(phase, left, folder)
        red |= phase.required and not phase.timing and not _fine(phase, ending)
        endings.append(ending)
        print(ending, file=sys.stderr, flush=True)
    return endings


def _fine(phase: Phase, ending: Ending) -> bool:
    if phase.skip or ending.outcome == "passed":
        return True
    return phase.may_time_out and ending.outcome != "failed"


def _run(phase: Phase, limit: float, folder: Path) -> Ending:
    start, log = time.monotonic(), folder / LOGS / f"{phase.name}.log"
    with log.open("w") as file:
        # A session of its own, so that a time-out ends the command's children, too.
        process = subprocess.Popen(
            phase.command,
            cwd=folder,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | dict(phase.environment),
            start_new_session=True,
        )
        try:
            process.wait(limit)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
    seconds = time.monotonic() - start
    lines = log.read_text(errors="replace").splitlines()
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    if process.returncode == 0:
        return Ending(phase.name, "passed", seconds, last if len(last) <= 100 else "")
    print("\n".join(lines[-TAIL:]), file=sys.stderr)
    if process.returncode == -signal.SIGKILL:
        return Ending(phase.name, "timed out", seconds, f"after {limit:.0f} s")
    return Ending(phase.name, "failed", seconds, f"exit status {process.returncode}")
