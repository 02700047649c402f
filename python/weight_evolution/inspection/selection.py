"""What an evolution of a checkpoint of ``weight-evolution train`` would select."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from ..measures import count_invalid_filters
from ..measures.invalid_filters import PUBLISHED_THRESHOLDS
from ..training.arguments import fraction, non_negative_float, option
from ..training.config import TrainingConfig
from ..training.errors import user_errors
from ..training.inferior import PUBLISHED_LOCAL_RATIO, PUBLISHED_RATE, count_inferior_filters
from ..training.methods.evolution import EvolutionMethod, Options, make_evolution


@dataclass(frozen=True)
class SelectionOptions:
    """What to select with instead of the checkpoint's options."""

    conv_rate: float | None = option(None, "without a schedule (default: the run's)", type=fraction, metavar="R")
    norm_rate: float | None = option(None, "of BatchNorms, without a schedule", type=fraction, metavar="R")
    local_ratio: float | None = option(None, "default: the run's", type=fraction, metavar="R")
    thresholds: tuple[float, ...] = option(
        PUBLISHED_THRESHOLDS,
        "count the filters whose L1 norm is under each (default 0.1 0.01)",
        type=non_negative_float,
        nargs="+",
        metavar="T",
    )


def selection(title: str, model: nn.Module, state: Mapping[str, Any], given: SelectionOptions) -> str:
    """A readable table: per parameter the filters, the inferior ones and the importances; per group the threshold.

    Options are those that the checkpoint was trained with, its schedule and counters included; the published base
    rates if it was trained without evolution.

    Args:
        title: of the checkpoint, for messages.
        model: its network.
        state: the checkpoint.
        given: what to select with instead of its options.

    Raises:
        UserError: the checkpoint does not fit its own model.
    """
    config = TrainingConfig.from_dict(state["config"])
    trained_with: Mapping[str, Any] | None = config.method_options.get(EvolutionMethod.name)
    options = dict(trained_with or asdict(Options()))
    norm_rates = {"norm_scale_rate": given.norm_rate, "norm_shift_rate": given.norm_rate}
    others = {"conv_rate": given.conv_rate, **norm_rates, "local_ratio": given.local_ratio}
    options |= {name: value for name, value in others.items() if value is not None}
    if given.conv_rate is not None or given.norm_rate is not None:
        options["schedule"] = None
    evolution = make_evolution(model, None, options)
    if trained_with is not None:
        with user_errors(f"{title}: ", KeyError, ValueError):
            evolution.load_state_dict(state["methods"][EvolutionMethod.name], strict=False)
    last_epoch = max(state["epoch"] - 1, 0)
    report = evolution.preview(epoch=last_epoch)
    found = count_inferior_filters(model)
    return "\n".join(
        [
            f"inferior at the published rate {PUBLISHED_RATE} and local ratio {PUBLISHED_LOCAL_RATIO}, without "
            "schedule and starvation rule: "
            f"{found.inferior} of {found.filters} conv filters",
            *(f"invalid, L1 norm under {threshold:g}: {_invalid(model, threshold)}" for threshold in given.thresholds),
            _source(trained_with is not None, options, last_epoch),
            "",
            report.table(),
        ]
    )


def _invalid(model: nn.Module, threshold: float) -> str:
    invalid, filters = count_invalid_filters(model, threshold)
    return f"{invalid} of {filters} conv filters"


def _source(trained_with: bool, options: Mapping[str, Any], epoch: int) -> str:
    rates = "constant rates" if options["schedule"] is None else f"the schedule's rates of epoch {epoch}"
    return f"what an evolution would select: {'the run' if trained_with else 'published'} options, {rates}"
