"""How active units are on batches of data, in eval mode."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..measures import DormancyReport, UnitActivity
from ..model.modes import evaluating
from ..model.module_filters import ModuleChoice
from ..model.wrappers import named_parameters

Batch = Tensor | Sequence[Any] | Mapping[str, Any]
"""What a data loader gives: inputs, a sequence that begins with them, or the arguments of forward by name."""


def measure_activity(
    model: nn.Module,
    batches: Iterable[Batch],
    example_inputs: tuple[Tensor, ...] | None,
    choice: ModuleChoice,
) -> DormancyReport | str:
    """The activity on all batches, or why it cannot be measured; the model's modes stay as they were.

    Raises:
        TypeError, ValueError: ``batches`` is none, or a batch is nothing that forward could be given.
    """
    if isinstance(batches, (Tensor, str, Mapping)) or not isinstance(batches, Iterable):
        raise TypeError(
            f"batches must be a list or data loader of batches, got {type(batches).__name__}; of one batch give [batch]"
        )
    device = next((parameter.device for _, parameter in named_parameters(model)), torch.device("cpu"))
    rest = iter(batches)
    first = next(rest, None)
    if first is None:
        raise ValueError("batches must hold at least one batch")
    arguments, _ = _inputs(first, device)
    try:
        activity = UnitActivity(model, example_inputs=example_inputs or arguments or None, **choice._asdict())
    except ValueError as error:
        return str(error)
    with evaluating(model), activity:
        for batch in chain([first], rest):
            arguments, named = _inputs(batch, device)
            model(*arguments, **named)
        return activity.report(all_ranks=False)


def _inputs(batch: Batch, device: torch.device) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """The arguments of forward, those without names and those with."""
    if isinstance(batch, Mapping):
        return (), {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
    inputs = batch[0] if isinstance(batch, Sequence) and batch else batch
    if not isinstance(inputs, Tensor):
        raise TypeError(
            "batches must hold tensors, sequences that begin with one, or dicts of forward's arguments, got "
            f"{type(batch).__name__}"
        )
    return (inputs.to(device),), {}
