"""What ``weight-evolution inspect`` prints and writes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..health import HealthReport, filter_health
from ..training.data import load_data
from ..training.errors import UserError
from ..training.logs import write_text
from .sources import Source

FORMATS = ("text", "json", "html")


@dataclass(frozen=True)
class InspectOptions:
    """What to measure with, and how to say it."""

    data: str | None = None
    """A data set whose test images are run through the network."""
    root: Path | None = None
    batches: int = 8
    batch_size: int = 64
    input_size: Sequence[int] | None = None
    """Of one image, to count multiply-accumulates; the data's, where there are some."""
    full: bool = False
    long: bool = False
    """All layers as text, instead of the five that matter."""


def inspect_network(source: Source, options: InspectOptions) -> HealthReport:
    """The filter health of a network.

    Raises:
        UserError: the data do not go through it, or it has nothing to measure.
    """
    batches: list[Tensor] | None = None
    input_size = options.input_size
    if options.data is not None:
        if not source.runs:
            raise UserError("--data needs a network that can be run: say which by --model")
        dataset = load_data(options.data, options.root)
        mean, deviation = dataset.statistics
        images = dataset.test_images[: options.batches * options.batch_size]
        batches = list(((images.float() - mean) / deviation).split(options.batch_size))
        input_size = tuple(images.shape[1:])
    if not source.runs and input_size is not None:
        raise UserError("--input-size needs a network that can be run: say which by --model")
    try:
        return filter_health(source.model, batches, input_size=input_size, full=options.full)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{source.title}: {reason}") from error


def formatted(report: HealthReport, source: Source, form: str, long: bool) -> str:
    """As ``form`` has it.

    Raises:
        UserError: HTML needs matplotlib, which is not installed.
    """
    if form == "json":
        found = {"source": source.title, "notes": list(source.notes), **report.to_dict()}
        return json.dumps(found, indent=1, allow_nan=False)
    if form == "html":
        try:
            return report.to_html(source.title)
        except ImportError as error:
            raise UserError(str(error)) from None
    lines = [source.title, *source.notes, str(report)]
    return "\n".join(lines + (["", report.table()] if long else []))


def write(text: str, output: Path, overwrite: bool) -> None:
    """Write a new file.

    Raises:
        UserError: it exists already, or cannot be written.
    """
    if output.exists() and not overwrite:
        raise UserError(f"{output} exists; pass --overwrite to replace it, or name another file")
    write_text(output, text)
