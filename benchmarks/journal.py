"""One JSON object a line, on the disk as soon as it is known: what was measured stays when the program is killed."""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BROKEN = 75
"""Exit status of a process whose device can do nothing more; another one goes on where it stopped."""


class Journal:
    """A file that several processes append to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, event: str, **values: Any) -> None:
        """Appends one line: ``event``, ``at`` (seconds since 1970) and the values."""
        line = json.dumps({"event": event, "at": round(time.time(), 2), **values}) + "\n"
        if self._is_cut_off():
            line = "\n" + line
        append(self.path, line, sync=True)

    def _is_cut_off(self) -> bool:
        """Whether a writer was killed within its line."""
        if not self.path.exists() or not self.path.stat().st_size:
            return False
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"

    def read(self, *events: str) -> list[dict[str, Any]]:
        """All lines, or those of some events. A line that was cut off when its writer was killed is left out."""
        lines = self.path.read_text(errors="replace").splitlines() if self.path.exists() else []
        found = [value for line in lines if (value := _parsed(line))]
        return [value for value in found if not events or value["event"] in events]


def append(path: Path, text: str, sync: bool = False) -> None:
    """In one piece, so that writers do not mix; ``sync``: on the disk when it returns."""
    with path.open("ab", buffering=0) as file:
        file.write(text.encode(errors="replace"))
        if sync:
            os.fsync(file.fileno())


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return value


class Steps:
    """Steps of a job that may kill or hang their process; when the job is started again, it goes on after them.

    Args:
        journal: knows what was started.
        job: its name; the names of its steps are its own.
        limit: seconds that a step may take; then the process ends itself.
    """

    def __init__(self, journal: Journal, job: str, limit: float) -> None:
        self.journal = journal
        self.job = job
        self.limit = limit
        self.begun = {line["step"] for line in journal.read("step begins") if line["job"] == job}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Around one step; a watchdog, which needs no answer from the interpreter, ends a process that hangs."""
        self.begin(name)
        try:
            yield
        finally:
            self.end()

    def begin(self, name: str) -> None:
        """As `step`, which see."""
        self.journal.write("step begins", job=self.job, step=name)
        faulthandler.dump_traceback_later(self.limit, exit=True, file=sys.__stderr__)

    def end(self) -> None:
        """As `step`, which see."""
        faulthandler.cancel_dump_traceback_later()

    def finish(self) -> None:
        """Nothing is left to do."""
        self.journal.write("job ends", job=self.job)


def leave_if_broken(steps: Steps) -> None:
    """Ends this process if its CUDA device answers with errors only, as after an illegal access."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        steps.journal.write("device broken", job=steps.job, error=str(error).splitlines()[0])
        os._exit(BROKEN)
