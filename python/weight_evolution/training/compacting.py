"""The compact network of a low-rank checkpoint as a file of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from weight_evolution import LowRankProjection, compact_like
from weight_evolution.low_rank import CompactReport

from .checkpoint import heading, load_weights, read_checkpoint, restored_model, save_checkpoint
from .config import TrainingConfig
from .data import Dataset, load_data
from .errors import UserError, user_errors
from .logs import check_output_file
from .methods.base import example_image
from .methods.low_rank import LowRankMethod, make_projection
from .models import make_model
from .torch_files import load_file
from .trainer import evaluate

_KIND = "weight-evolution compact network"
_FORMAT = 1
_TYPES: dict[str, type] = {
    "kind": str,
    "format": int,
    "config": dict,
    "in_channels": int,
    "num_classes": int,
    "input_size": list,
    "ranks": dict,
    "state_dict": dict,
}


def load_compact(path: str | Path) -> nn.Module:
    """The network that ``weight-evolution compact`` wrote, on the CPU and in eval mode.

    The file holds tensors and plain values only. A model of one's own (``--model module:factory``) is made by importing
    that module.

    Raises:
        UserError: there is no such file, it is of another kind, or it does not fit its own model.
    """
    path = Path(path)
    saved = _read(path)
    config = TrainingConfig.from_dict(saved["config"])
    with torch.random.fork_rng(devices=[]):  # the random initialization is replaced at once
        original = make_model(config.model, saved["in_channels"], saved["num_classes"])
        with user_errors(f"{path} does not fit its model {config.model}: "):
            compact = compact_like(original, saved["ranks"])
    load_weights(compact, saved["state_dict"])
    return compact.eval()


def is_compact(saved: object) -> bool:
    """Whether what a file holds is meant to be of ``weight-evolution compact``."""
    return isinstance(saved, dict) and saved.get("kind") == _KIND


def compact_checkpoint(
    checkpoint: Path,
    output: Path,
    device: torch.device,
    *,
    root: Path | None = None,
    download: bool = False,
    checksum: bool = True,
    overwrite: bool = False,
) -> str:
    """Write the compact network of a checkpoint to ``output``, for `load_compact`; returns a readable summary.

    Args:
        checkpoint: of ``weight-evolution train --method low-rank``; only read.
        device: where to compute.
        root: folder of the data set's files. Where the data set is missing, the accuracy is not measured.
        download: of CIFAR, what is missing.
        checksum: of CIFAR, insist on the published files.
        overwrite: replace ``output`` if it exists.

    Raises:
        UserError: the checkpoint is unfit, or ``output`` exists or cannot be written.
    """
    check_output_file(output, checkpoint, overwrite)
    state = read_checkpoint(checkpoint)
    config = TrainingConfig.from_dict(state["config"])
    model, projection, input_size = _restore(checkpoint, state, config, device)
    compact = projection.compact().eval()
    report = projection.report()
    accuracy = _accuracy(
        partial(load_data, config.data, root, download, checksum, config.image_size), model, compact, device
    )
    saved = {
        "kind": _KIND,
        "format": _FORMAT,
        "config": config.to_dict(),
        "in_channels": state["in_channels"],
        "num_classes": state["num_classes"],
        "input_size": input_size,
        "ranks": projection.compact_ranks,
        "state_dict": compact.state_dict(),
    }
    with user_errors(f"cannot write {output}: ", OSError, RuntimeError):
        save_checkpoint(saved, output)
    image = "x".join(map(str, input_size))
    return "\n".join(
        [
            heading(checkpoint, state),
            f"parameters {report.parameters_before:,} -> {report.parameters_after:,} ({report.parameters_share:.1%})",
            f"MACs of one {image} image {report.macs_before:,} -> {report.macs_after:,} ({report.macs_share:.1%})",
            accuracy,
            *_layers(model, report),
            f"written to {output}",
        ]
    )


def _restore(
    path: Path, state: dict[str, Any], config: TrainingConfig, device: torch.device
) -> tuple[nn.Module, LowRankProjection, list[int]]:
    """The trained network, its projection and the size [C, H, W] of one image."""
    if LowRankMethod.name not in config.method_options:
        raise UserError(f"{path} was trained with method {config.method}, without low-rank; nothing to make compact")
    model = restored_model(state, device)
    try:
        own = state["methods"][LowRankMethod.name]
        input_size, saved, projections = list(own["input_size"]), own["projection"], own["projections"]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: no state of method low-rank ({error!r})") from None
    if projections == 0:
        raise UserError(f"{path} was saved before the first projection; train it for an epoch")
    options = config.method_options[LowRankMethod.name]
    projection = make_projection(model, None, options, example_image(model, input_size))
    with user_errors(f"{path}: "):
        projection.load_state_dict(saved)
    return model, projection, input_size


def _accuracy(load: Callable[[], Dataset], model: nn.Module, compact: nn.Module, device: torch.device) -> str:
    try:
        dataset = load().to(device)
    except UserError as error:
        return f"test accuracy not measured: {error}"
    before, after = (evaluate(network, dataset)[1] for network in (model, compact))
    return f"test accuracy {before:.2f}% -> {after:.2f}% ({len(dataset.test_images)} images)"


def _layers(model: nn.Module, report: CompactReport) -> list[str]:
    left = {cost.name: cost.reason for cost in report.layers if cost.reason}
    linear = {name: "Linear" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    left |= {name: reason for name, reason in linear.items() if name not in {cost.name for cost in report.layers}}
    replaced = len([cost for cost in report.layers if not cost.reason])
    return [f"{replaced} layers became two, {len(left)} are left alone{':' if left else ''}"] + [
        f"  {name}: {reason}" for name, reason in left.items()
    ]


def _read(path: Path) -> dict[str, Any]:
    saved: dict[str, Any] = load_file(path, "a compact network")
    if not is_compact(saved):
        raise UserError(f"{path} is not a compact network; weight-evolution compact CHECKPOINT -o OUT writes one")
    if saved.get("format") != _FORMAT:
        raise UserError(f"{path} has format {saved.get('format')}, this version reads {_FORMAT}")
    if wrong := [name for name, kind in _TYPES.items() if not isinstance(saved.get(name), kind)]:
        raise UserError(f"{path} is damaged: {wrong[0]} is missing or of another type")
    return saved
