"""Commands of a campaign: within limits of time, beside each other if need be, every ending journalled at once."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.journal import Journal, append

TAIL = 5
"""Last lines of a command's output that its ending keeps, unless it passed."""
LEAST = 2.0
"""Seconds under which nothing is started."""
STARTS = 6
"""Of a command that can go on where it stopped."""


@dataclass
class Phase:
    """One command."""

    name: str
    command: Sequence[str]
    limit: float
    """Seconds that it may take, all its starts together."""
    resumes: bool = False
    """It journals its steps (`journal.Steps`): when it ends before its job has, it is started again."""
    environment: Mapping[str, str] = field(default_factory=dict)
    skip: str = ""
    """Why it is not run at all."""
    needs: Callable[[], Ending] | None = None
    """It waits for this ending, and is run only if that phase passed."""


@dataclass
class Ending:
    """How a phase ended."""

    phase: str
    outcome: str
    """"passed", "failed", "timed out" or "skipped"."""
    seconds: float = 0.0
    starts: int = 0
    detail: str = ""
    tail: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        again = f" ({self.starts} starts)" if self.starts > 1 else ""
        return f"{self.phase:<20} {self.outcome:<9} {self.seconds:6.1f} s{again}  {self.detail}".rstrip()


class Runner:
    """Runs phases.

    Args:
        journal: receives their endings.
        log: receives what they print, each line after the phase's name.
        folder: where they run.
        deadline: `time.time()` at which everything ends.
    """

    def __init__(self, journal: Journal, log: Path, folder: Path, deadline: float) -> None:
        self.journal = journal
        self.log = log
        self.folder = folder
        self.deadline = deadline
        self._running: set[int] = set()

    def kill(self) -> None:
        """Ends all that runs."""
        for group in list(self._running):
            _kill(group)

    def together(self, phases: Sequence[Phase], workers: int, until: float | None = None) -> None:
        """Several at a time; ``until``: an earlier deadline for all of them."""
        with ThreadPoolExecutor(workers) as pool:
            wait([pool.submit(self.run, phase, until) for phase in phases])

    def in_background(self, phase: Phase) -> Callable[[], Ending]:
        """Starts it; what is returned waits for its ending."""
        pool = ThreadPoolExecutor(1)
        future = pool.submit(self.run, phase)
        pool.shutdown(wait=False)
        return future.result

    def run(self, phase: Phase, until: float | None = None) -> Ending:
        """Until it ends, or its time is over; its children end with it."""
        needed = phase.needs() if phase.needs and not phase.skip else None
        begin = time.time()
        end = min(begin + phase.limit, until or self.deadline, self.deadline)
        if phase.skip:
            ending = Ending(phase.name, "skipped", detail=phase.skip)
        elif needed and needed.outcome != "passed":
            ending = Ending(phase.name, "skipped", detail=f"{needed.phase}: {needed.outcome}")
        elif end - begin < LEAST:
            ending = Ending(phase.name, "skipped", detail="no time is left")
        else:
            self.journal.write("phase begins", phase=phase.name, limit=round(end - begin, 1))
            ending = self._run(phase, end)
            ending.seconds = round(time.time() - begin, 1)
        self.journal.write("phase ends", **asdict(ending))
        print(ending, flush=True)
        return ending

    def _run(self, phase: Phase, end: float) -> Ending:
        for starts in range(1, STARTS + 1):
            before = self._steps(phase)
            status, tail = self._once(phase, end)
            if status is None:
                return Ending(phase.name, "timed out", 0.0, starts, self._where(phase), tail)
            if not phase.resumes:
                break
            if self._is_through(phase):
                outcome = "failed" if status or starts > 1 else "passed"
                return Ending(phase.name, outcome, 0.0, starts, _said(status, tail), tail if status else [])
            self.journal.write("process died", phase=phase.name, status=status, during=self._where(phase), tail=tail)
            if self._steps(phase) == before or end - time.time() < LEAST:
                break
        return Ending(
            *(phase.name, "failed" if status or phase.resumes else "passed", 0.0, starts, _said(status, tail)),
            tail if status else [],
        )

    def _once(self, phase: Phase, end: float) -> tuple[int | None, list[str]]:
        """Exit status (None: ended when the time was over) and the last lines of the output."""
        try:
            process = subprocess.Popen(
                [str(part) for part in phase.command],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=os.environ | dict(phase.environment),
                start_new_session=True,  # so that its children can be ended with it
            )
        except OSError as error:
            return 127, [str(error)]
        self._running.add(process.pid)
        tail: deque[str] = deque(maxlen=TAIL)
        reader = threading.Thread(target=self._copy, args=(process, phase.name, tail), daemon=True)
        reader.start()
        status: int | None
        try:
            status = process.wait(max(end - time.time(), 0.0))
        except subprocess.TimeoutExpired:
            status = None
        _kill(process.pid)
        self._running.discard(process.pid)
        process.wait()
        reader.join(2.0)
        return status, list(tail)

    def _copy(self, process: subprocess.Popen[bytes], name: str, tail: deque[str]) -> None:
        assert process.stdout
        with process.stdout:
            for line in process.stdout:
                if text := line.decode(errors="replace").rstrip():
                    tail.append(text[:300])
                    append(self.log, f"[{name}] {text}\n")

    def _steps(self, phase: Phase) -> list[dict[str, Any]]:
        return [line for line in self.journal.read("step begins") if line["job"] == phase.name]

    def _is_through(self, phase: Phase) -> bool:
        return any(line["job"] == phase.name for line in self.journal.read("job ends"))

    def _where(self, phase: Phase) -> str:
        steps = self._steps(phase)
        return f"during {steps[-1]['step']}" if steps else ""


def _kill(group: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _said(status: int, tail: list[str]) -> str:
    """The last line of the output, and a status that is not 0."""
    last = tail[-1][:120] if tail else ""
    return last if not status else f"exit status {status}: {last}"
