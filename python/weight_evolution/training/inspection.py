"""What an evolution of a checkpoint would select; the file is only read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from weight_evolution import count_invalid_filters
from weight_evolution.measures.invalid_filters import PUBLISHED_THRESHOLDS

from .checkpoint import read_checkpoint, restored_model
from .config import TrainingConfig
from .errors import user_errors
from .inferior import PUBLISHED_LOCAL_RATIO, PUBLISHED_RATE, count_inferior_filters
from .methods.evolution import EvolutionMethod, Options, make_evolution
from .trainer import headline_accuracy


def inspect_checkpoint(
    path: Path,
    rate: float | None = None,
    norm_rate: float | None = None,
    local_ratio: float | None = None,
    thresholds: Sequence[float] = PUBLISHED_THRESHOLDS,
) -> str:
    """A readable table: per parameter the filters, the inferior ones and the importances; per group the threshold.

    Options are those that the checkpoint was trained with, its schedule and counters included; the published base
    rates if it was trained without evolution.

    Args:
        path: a checkpoint of ``weight-evolution train``.
        rate, norm_rate: rates to use as they are, without a schedule, for convolutions and for BatchNorms.
        local_ratio: in place of the checkpoint's.
        thresholds: count the filters whose L1 norm is under each.

    Raises:
        UserError: the file cannot be read or does not fit its own model.
    """
    state = read_checkpoint(path)
    config = TrainingConfig.from_dict(state["config"])
    trained_with: Mapping[str, Any] | None = config.method_options.get(EvolutionMethod.name)
    options = dict(trained_with or asdict(Options()))
    if rate is not None or norm_rate is not None:
        options["schedule"] = None
    if rate is not None:
        options["conv_rate"] = rate
    if norm_rate is not None:
        options["norm_scale_rate"] = options["norm_shift_rate"] = norm_rate
    if local_ratio is not None:
        options["local_ratio"] = local_ratio

    model = restored_model(state)
    evolution = make_evolution(model, None, options)
    if trained_with is not None:
        with user_errors(f"{path}: ", KeyError, ValueError):
            evolution.load_state_dict(state["methods"][EvolutionMethod.name], strict=False)
    last_epoch = max(state["epoch"] - 1, 0)
    report = evolution.preview(epoch=last_epoch)
    found = count_inferior_filters(model)
    accuracy = f", test accuracy {headline_accuracy(state['history'][-1]):.2f}%" if state["history"] else ""
    return "\n".join(
        [
            f"{path}: {config.model} on {config.data}, method {config.method}, seed {state['seed']}, "
            f"{state['epoch']} of {config.epochs} epochs{accuracy}",
            f"inferior at the published rate {PUBLISHED_RATE} and local ratio {PUBLISHED_LOCAL_RATIO}, without "
            "schedule and starvation rule: "
            f"{found.inferior} of {found.filters} conv filters",
            *(f"invalid, L1 norm under {threshold:g}: {_invalid(model, threshold)}" for threshold in thresholds),
            _source(trained_with is not None, options, last_epoch),
            "",
            str(report),
        ]
    )


def _invalid(model: nn.Module, threshold: float) -> str:
    invalid, filters = count_invalid_filters(model, threshold)
    return f"{invalid} of {filters} conv filters"


def _source(trained_with: bool, options: Mapping[str, Any], epoch: int) -> str:
    rates = "constant rates" if options["schedule"] is None else f"the schedule's rates of epoch {epoch}"
    return f"what an evolution would select: {'the run' if trained_with else 'published'} options, {rates}"
