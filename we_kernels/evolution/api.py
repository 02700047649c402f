"""Weight evolution's functions: they check their arguments, so that the operators and kernels need not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..bank import FilterBank
from ..checks import check_choice, check_fraction, check_number, check_rates, check_vector
from . import operators
from .rule import MatchingRule

CROSSOVERS = ("paper", "released")
"""Rules of the crossover."""


class Selection(NamedTuple):
    """What a matching or an evolution found, on the weights' device; reading it may wait for that device."""

    donor: Tensor
    """int32 [F]: row in the same layer, or -1."""
    importance: Tensor
    """float32 [F]: of the filters before the crossover."""
    threshold: Tensor
    """float32 [G]: importance below which a filter is globally inferior; NaN when a weight was not finite."""
    inferior: Tensor
    """int32 [L]: filters of each layer selected as inferior (they may outnumber those that got a donor)."""


@torch.no_grad()
def filter_importance(bank: FilterBank) -> Tensor:
    """L1 norm of every filter divided by its number of kernels (in_channels / groups), float32 [F].

    Sums run in float32, for float64 weights in float64. Source: Weight Evolution (arXiv 2110.04492), section 3.1.
    """
    view = bank.view()
    if not bank.weights:
        return torch.empty(0, dtype=torch.float32, device="cpu")
    importance: Tensor = operators.filter_importance(view)
    return importance


@torch.no_grad()
def match_filters(
    bank: FilterBank,
    importance: Tensor,
    *,
    rate: float | Sequence[float] | Tensor,
    local_ratio: float | Sequence[float | None] | None = 0.1,
    starvation: Tensor | None = None,
    starvation_limit: float | None = None,
    zero_is_inferior: bool | Sequence[bool] = False,
) -> Selection:
    """Donor of every filter: the row in the same layer that replaces it, or -1; with what else a matching finds.

    The threshold of a group is its floor(total * rate)-th smallest importance (0-based; the largest for rate 1). In a
    layer with filters strictly below it, the inferior ones are the ``min(below, low)`` least important, where ``low``
    counts importances <= ``local_ratio`` times the layer's largest. The k-th best of them gets the k-th most important
    filter of the layer. Source: Weight Evolution (arXiv 2110.04492), sections 3.1 and 3.2.

    Args:
        bank: gives layers and groups; its weights are not read.
        importance: float32 [F], not negative. If one is not finite, nothing is matched.
        rate: fraction in [0, 1] of all filters; one for all groups, one each, or a float64 [G] tensor on the weights'
            device (read there, so that it can change under a captured graph).
        local_ratio: fraction in [0, 1]; None: no local selection, every filter <= the threshold is inferior.
        starvation: int32 [G] counter, updated in place; None: the starvation rule is off.
        starvation_limit: a layer that is globally inferior but locally not counts one; at this count it gives up
            one filter. (number of conv layers) / starvation_divisor.
        zero_is_inferior: for all groups or one each: a filter of importance 0 counts as strictly below the threshold,
            whatever that is. Without it, none does where more than the rate's share of the group has importance 0.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, size, dtype, device or range; nothing is changed.
    """
    check_vector(importance, "importance", bank.num_filters, torch.float32, bank.device)
    rule = _check_rule(bank, rate, local_ratio, starvation, starvation_limit, zero_is_inferior)
    if not bank.weights:
        return _empty_selection(bank.num_groups)
    donor, threshold, inferior = operators.match_filters(importance.contiguous(), bank.segments, rule)
    return Selection(donor, importance, threshold, inferior)


@torch.no_grad()
def crossover_(bank: FilterBank, donor: Tensor, rule: str = "paper", *, validate: bool = True) -> None:
    """Overwrite every filter that has a donor, in place.

    Kernels of height 1 (1x1, 1xk), rows and vectors are blended by L1 norm; in all others, per kernel, the element of
    least magnitude is combined with the donor's of largest magnitude. An element whose new value would not be finite
    keeps its value. Source: Weight Evolution (arXiv 2110.04492), section 3.3 and Figure 1.

    Args:
        bank: the weights to change.
        donor: int32 [F] on the weights' device, from `match_filters`: -1, or a row of the same layer that has no donor.
        rule: "paper" (convex, cannot overshoot) or "released" (what the authors' program does).
        validate: check the donors' values (waits for a GPU). Without it, out-of-range donors are treated as -1.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, size, dtype, device or range; nothing is changed.
    """
    view = bank.view()
    check_choice(rule, "rule", CROSSOVERS)
    check_vector(donor, "donor", bank.num_filters, torch.int32, bank.device)
    if bank.weights:
        operators.crossover_(view, donor.contiguous(), rule, validate)


@torch.no_grad()
def evolve_(
    bank: FilterBank,
    *,
    rate: float | Sequence[float] | Tensor,
    local_ratio: float | Sequence[float | None] | None = 0.1,
    rule: str = "paper",
    starvation: Tensor | None = None,
    starvation_limit: float | None = None,
    zero_is_inferior: bool | Sequence[bool] = False,
) -> Selection:
    """Importance, matching and crossover as one step.

    Arguments and errors are those of `match_filters` and `crossover_`. If any weight of the bank is not finite, the
    step changes nothing, the counters included.
    """
    view = bank.view()
    check_choice(rule, "rule", CROSSOVERS)
    matching = _check_rule(bank, rate, local_ratio, starvation, starvation_limit, zero_is_inferior)
    if not bank.weights:
        return _empty_selection(bank.num_groups)
    return Selection(*operators.evolve_(view, rule, matching))


def _check_rule(
    bank: FilterBank,
    rate: float | Sequence[float] | Tensor,
    local_ratio: float | Sequence[float | None] | None,
    starvation: Tensor | None,
    starvation_limit: float | None,
    zero_is_inferior: bool | Sequence[bool],
) -> MatchingRule:
    groups, device = bank.num_groups, bank.device
    return MatchingRule(
        check_rates(rate, groups, device),
        _check_local_ratios(local_ratio, groups),
        starvation,
        _check_starvation(starvation, starvation_limit, groups, device),
        _check_flags(zero_is_inferior, groups),
    )


def _check_starvation(starvation: Tensor | None, limit: float | None, groups: int, device: torch.device) -> float:
    """The starvation counter int32 [groups] and its limit go together; returns the limit (inf when off)."""
    if starvation is None:
        if limit is not None:
            raise ValueError("starvation_limit needs starvation, an int32 counter tensor (or leave both out)")
        return math.inf
    check_vector(starvation, "starvation", groups, torch.int32, device)
    if not starvation.is_contiguous():
        raise ValueError("starvation must be contiguous")
    if limit is None:
        raise ValueError("starvation needs starvation_limit: (number of conv layers) / starvation_divisor")
    number = check_number(limit, "starvation_limit")
    if not number > 0:
        raise ValueError(f"starvation_limit must be positive, got {number}")
    return number


def _check_local_ratios(local_ratio: float | Sequence[float | None] | None, groups: int) -> list[float]:
    """One ratio per group; -1 stands for None, no local selection."""
    if not isinstance(local_ratio, Sequence):
        return [-1.0 if local_ratio is None else check_fraction(local_ratio, "local_ratio")] * groups
    if len(local_ratio) != groups:
        raise ValueError(f"local_ratio must have one entry per group ({groups}), got {len(local_ratio)}")
    return [-1.0 if ratio is None else check_fraction(ratio, "local_ratio") for ratio in local_ratio]


def _check_flags(flag: bool | Sequence[bool], groups: int) -> list[bool]:
    """One flag per group."""
    if isinstance(flag, bool):
        return [flag] * groups
    flags = list(flag) if isinstance(flag, Sequence) else None
    if flags is None or not all(isinstance(entry, bool) for entry in flags):
        raise TypeError(f"zero_is_inferior must be True, False or a list of them, one per group, got {flag!r}")
    if len(flags) != groups:
        raise ValueError(f"zero_is_inferior must have one entry per group ({groups}), got {len(flags)}")
    return flags


def _empty_selection(groups: int) -> Selection:
    no_filters = torch.empty(0, dtype=torch.int32, device="cpu")
    return Selection(no_filters, no_filters.float(), torch.zeros(groups, dtype=torch.float32, device="cpu"), no_filters)
