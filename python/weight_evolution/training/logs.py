"""Logs of a run: CSV or JSON, rewritten from the history after each epoch, and TensorBoard."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..extras import install
from .errors import UserError

LOG_FORMATS = ("csv", "json")

Row = Mapping[str, Any]


def write_log(history: Sequence[Row], path: Path) -> None:
    """Write all rows, as JSON if ``path`` ends in .json and else as CSV. Values that are not finite are left empty."""
    if path.suffix == ".json":
        write_text(path, to_json([dict(row) for row in history]))
        return
    columns = list(dict.fromkeys(key for row in history for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for row in history:
        writer.writerow({key: "" if _finite(value) is None else value for key, value in row.items()})
    write_text(path, text.getvalue())


def to_json(value: Any) -> str:
    """Indented JSON; NaN and infinity become null."""
    return json.dumps(_finite(value), indent=2, allow_nan=False) + "\n"


def check_output_file(output: Path, source: Path, overwrite: bool) -> None:
    """Before work is done whose result is to be written.

    Raises:
        UserError: ``output`` is ``source``, exists, or cannot be written for want of its folder.
    """
    if output.is_dir():
        raise UserError(f"{output} is a folder; name a file")
    if not output.parent.is_dir():
        raise UserError(f"cannot write {output}: there is no folder {output.parent}")
    if output.resolve() == source.resolve():
        raise UserError(f"{output} is what is read; name another file")
    if output.exists() and not overwrite:
        raise UserError(f"{output} exists; pass --overwrite to replace it, or name another file")


def write_text(path: Path, text: str) -> None:
    """Replace the file as a whole."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


class TensorBoardLog:
    """Scalars of each epoch under ``folder`` (needs the extra ``tensorboard``)."""

    def __init__(self, folder: Path, next_epoch: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError(f"--tensorboard needs TensorBoard: {install('tensorboard')}") from None
        self._writer = SummaryWriter(str(folder), purge_step=next_epoch)

    def write(self, row: Row) -> None:
        """One value for each number of the row."""
        for key, value in row.items():
            if key != "epoch" and isinstance(value, (int, float)):
                self._writer.add_scalar(key, value, row["epoch"])

    def close(self) -> None:
        """Write what is buffered."""
        self._writer.close()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return value
