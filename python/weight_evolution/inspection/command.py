"""What ``weight-evolution inspect`` prints and writes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..health import HealthReport, filter_health
from ..tables import first_line
from ..training.arguments import option, positive_int
from ..training.config import TrainingConfig
from ..training.data import CHECKSUM_HELP, DATA_HELP, DOWNLOAD_HELP, IMAGE_SIZE_HELP, is_folder, load_data
from ..training.errors import UserError, needed, user_errors
from ..training.logs import check_output_file, write_text
from .inputs import check_input
from .selection import SelectionOptions, selection
from .sources import Source, load_network

FORMATS = ("text", "json", "html")
IN_DATA = 512
"""Test images that are run through the network by default."""
_OF_DATA = {
    "root": "--root",
    "download": "--download",
    "checksum": "--no-checksum",
    "image_size": "--image-size",
    "images": "--images",
    "batch_size": "--batch-size",
}
"""Options that say nothing without --data."""


@dataclass(frozen=True)
class InspectOptions:
    """What to look at, and how to say it."""

    model: str | None = option(
        None, "architecture of a file of weights: timm:NAME, torchvision:NAME, module:factory, or as of train"
    )
    num_classes: int | None = option(None, "of the architecture (default: its own)", type=positive_int, metavar="N")
    in_channels: int | None = option(None, "of the architecture (default: its own)", type=positive_int, metavar="N")
    random: bool = option(False, "timm:NAME and torchvision:NAME freshly initialised, without their published weights")
    key: str | None = option(
        None, "entry of a file of torch.save that has the weights, such as model_ema, or dotted: a.b", metavar="NAME"
    )
    trust_pickle: bool = option(False, "also read files that run code of their own, such as whole modules")
    data: str | None = option(None, f"run test images through it, to see which units fire: {DATA_HELP}")
    root: Path | None = option(None, "folder of the data set's files (default: its usual place)", type=Path)
    download: bool = option(False, DOWNLOAD_HELP)
    checksum: bool = option(True, CHECKSUM_HELP)
    image_size: int | None = option(
        None,
        f"{IMAGE_SIZE_HELP} (default: as the run had it, of a checkpoint of train)",
        type=positive_int,
        metavar="N",
    )
    images: int = option(IN_DATA, "of the data, spread evenly over its classes", type=positive_int, metavar="N")
    batch_size: int = option(64, "of the data", type=positive_int, metavar="N")
    input_size: tuple[int, ...] | None = option(
        None, "C H W of an image, to count multiply-accumulates", type=positive_int, nargs="+", metavar="N"
    )
    full: bool = option(False, "cosines and ranks of layers of more than 2,048 filters and elements, too")
    long: bool = option(False, "all layers, instead of the five of which most is wrong")
    format: str = option("text", "", choices=FORMATS)
    output: Path | None = option(None, "write a file instead of printing", type=Path, metavar="FILE")
    overwrite: bool = option(False, "replace --output if it exists")


def inspect(name: str, options: InspectOptions, chosen: SelectionOptions) -> str:
    """The filter health of the network that ``name`` says, as text, JSON or HTML.

    Raises:
        UserError: there is no such network, or the options do not fit it.
    """
    if options.output is not None:
        check_output_file(options.output, Path(name), options.overwrite)
    if options.format == "html":
        needed("matplotlib", "--format html", "inspect")
    if options.data is None and (ignored := [flag for entry, flag in _OF_DATA.items() if _is_given(options, entry)]):
        raise UserError(f"{', '.join(ignored)} belongs to --data; leave it out, or say which data")
    sizes = {"num_classes": options.num_classes, "in_channels": options.in_channels}
    source = load_network(
        name,
        options.model,
        options={size: number for size, number in sizes.items() if number is not None},
        random=options.random,
        trust_pickle=options.trust_pickle,
        key=options.key,
    )
    if source.run is None and chosen != SelectionOptions():
        raise UserError(
            f"--conv-rate, --norm-rate, --local-ratio and --thresholds are for checkpoints of train, not {name}"
        )
    report = _health(name, source, options)
    text = _formatted(report, source, options)
    if source.run is not None and options.format == "text":
        text = "\n".join([text, "", selection(source.title, source.model, source.run, chosen)])
    if options.output is None:
        return text
    with user_errors(f"cannot write {options.output}: ", OSError):
        write_text(options.output, text)
    return f"written to {options.output}"


def _is_given(options: InspectOptions, entry: str) -> bool:
    return bool(getattr(options, entry) != getattr(InspectOptions, entry))


def _health(name: str, source: Source, options: InspectOptions) -> HealthReport:
    batches: list[Tensor] | None = None
    input_size = options.input_size
    for given, flag in ((options.data, "--data"), (input_size, "--input-size")):
        if given is not None and not source.runs:
            raise UserError(f"{flag} needs a network that can be run: say which by --model")
    if input_size is not None:
        check_input(source.model, torch.zeros(1, *input_size), f"--input-size {' '.join(map(str, input_size))}")
    if options.data is not None:
        images = _images(source, options)
        check_input(source.model, images[:1], f"--data {options.data}")
        batches = list(images.split(options.batch_size))
        input_size = input_size or tuple(images.shape[1:])
    try:
        return filter_health(source.model, batches, input_size=input_size, full=options.full)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{name}: {first_line(error)}") from error


def _images(source: Source, options: InspectOptions) -> Tensor:
    """Test images float32 [N, C, H, W], normalised by the data set's own statistics."""
    assert options.data is not None
    dataset = load_data(options.data, options.root, options.download, options.checksum, _image_size(source, options))
    mean, deviation = dataset.statistics
    return (dataset.test_sample(options.images).float() - mean) / deviation


def _image_size(source: Source, options: InspectOptions) -> int | None:
    """To which a folder's images are resized: as for training, where it is not said."""
    assert options.data is not None
    if options.image_size is not None or source.run is None or not is_folder(options.data):
        return options.image_size
    return TrainingConfig.from_dict(source.run["config"]).image_size


def _formatted(report: HealthReport, source: Source, options: InspectOptions) -> str:
    if options.format == "json":
        found = {"source": source.title, "notes": list(source.notes), **report.to_dict()}
        return json.dumps(found, indent=1, allow_nan=False)
    if options.format == "html":
        return report.to_html(source.title)
    parts = [source.title, *source.notes, str(report)]
    return "\n".join([*parts, "", report.table()] if options.long else parts)
