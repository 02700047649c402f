"""What an experiment has done so far, in a file of JSON lines."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

from weight_evolution.training import UserError
from weight_evolution.training.config import first_difference

Result = Mapping[str, Any]
"""What was measured of a run; JSON has it."""

RunT = TypeVar("RunT")


class Journal(Generic[RunT]):
    """Results by run, as the lines of a file.

    Args:
        path: of the file.
        recipe: a dataclass, what all runs depend on.
        kind: the dataclass that says which run it is; its fields and those of results have different names.

    Raises:
        UserError: the file is of another recipe, or none of ours.
    """

    def __init__(self, path: Path, recipe: Any, kind: type[RunT]) -> None:
        self._path, self._recipe, self._kind = path, recipe, kind
        self.results: dict[RunT, Result] = {}
        self._whole: int | None = None
        """Bytes to keep, if the file ended within a line; it is left as it is until something is written, because
        another process may be about to end that line."""
        if path.exists():
            self._read()

    def write(self, run: RunT, result: Result) -> None:
        """Add a line, behind a first one with the recipe."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._whole is not None:
            os.truncate(self._path, self._whole)
            self._whole = None
        with self._path.open("a", encoding="utf-8") as file:
            if not self.results and not file.tell():
                file.write(json.dumps({"recipe": asdict(self._recipe)}) + "\n")
            file.write(json.dumps({**asdict(run), **result}) + "\n")  # type: ignore[call-overload]
        self.results[run] = result

    def _read(self) -> None:
        text = self._path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self._whole = len(whole.encode())
        names = [field.name for field in fields(self._kind)]  # type: ignore[arg-type]
        try:
            head, *lines = map(json.loads, whole.splitlines())
            recipe = head["recipe"]
            for line in lines:
                run = self._kind(**{name: line.pop(name) for name in names})
                self.results[run] = line
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self._path} is not a file of this experiment ({error!r}); pass another --output"
            ) from None
        if difference := first_difference(recipe, asdict(self._recipe)):
            raise UserError(f"{self._path} is of another experiment: {difference}; pass another --output")


def open_journals(paths: Sequence[Path], recipe: Any, kind: type[RunT], *, only_read: bool) -> list[Journal[RunT]]:
    """The journals of an experiment's processes.

    Raises:
        UserError: there are several, but not only to be read; or as of `Journal`.
    """
    if len(paths) > 1 and not only_read:
        raise UserError("--output takes several files only with --table")
    return [Journal(path, recipe, kind) for path in paths]


def all_results(journals: Sequence[Journal[RunT]]) -> dict[RunT, Result]:
    """Of all of them; the last one counts for what several have."""
    return {run: result for journal in journals for run, result in journal.results.items()}
