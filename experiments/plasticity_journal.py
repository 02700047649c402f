"""The runs of the plasticity experiment that are done, in a file of JSON lines."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from experiments.plasticity_settings import Recipe, Result, Run
from weight_evolution.training import UserError
from weight_evolution.training.config import first_difference


class Journal:
    """Results by run, as the lines of a file.

    Raises:
        UserError: the file is of another recipe, or none of ours.
    """

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self._path, self._recipe = path, recipe
        self.results: dict[Run, Result] = {}
        if path.exists():
            self._read()

    def write(self, run: Run, result: Result) -> None:
        """Add a line, behind a first one with the recipe."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            if not self.results and not file.tell():
                file.write(json.dumps({"recipe": asdict(self._recipe)}) + "\n")
            file.write(json.dumps({**asdict(run), **result}) + "\n")
        self.results[run] = result

    def _read(self) -> None:
        text = self._path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:  # ended within a line
            self._path.write_text(whole, encoding="utf-8")
        try:
            head, *lines = map(json.loads, whole.splitlines())
            recipe = head["recipe"]
            for line in lines:
                run = Run(**{name: line.pop(name) for name in ("setting", "arm", "lr", "seed")})
                self.results[run] = line
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{self._path} is not a file of this experiment ({error!r}); pass another --output"
            ) from None
        if difference := first_difference(recipe, asdict(self._recipe)):
            raise UserError(f"{self._path} is of another experiment: {difference}; pass another --output")
