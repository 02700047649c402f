"""The public functions: they check their arguments, so that the operators and kernels need not, and call `ops`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import ops  # noqa: F401  (registers torch.ops.we_kernels)
from .bank import FilterBank
from .checks import (
    check_local_ratios,
    check_rates,
    check_rule,
    check_starvation,
    check_vector,
    check_zero_is_inferior,
)


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
    bank.check()
    if not bank.weights:
        return torch.empty(0, dtype=torch.float32, device="cpu")
    importance: Tensor = torch.ops.we_kernels.filter_importance(bank.weights, bank.filter_dims)
    return importance


@torch.no_grad()
def select_and_match(
    bank: FilterBank,
    importance: Tensor,
    *,
    rate: float | Sequence[float] | Tensor,
    local_ratio: float | Sequence[float | None] | None = 0.1,
    starvation: Tensor | None = None,
    starvation_limit: float | None = None,
    zero_is_inferior: bool | Sequence[bool] = False,
) -> Selection:
    """`match_filters` with everything it finds: donors, thresholds and the number of inferior filters per layer."""
    groups, device = bank.num_groups, bank.device
    check_vector(importance, "importance", bank.num_filters, torch.float32, device)
    rates = check_rates(rate, groups, device)
    ratios = check_local_ratios(local_ratio, groups)
    limit = check_starvation(starvation, starvation_limit, groups, device)
    zeros = check_zero_is_inferior(zero_is_inferior, groups)
    if not bank.weights:
        return _empty_selection(groups)
    donor, threshold, inferior = torch.ops.we_kernels.match_filters(
        importance, bank.sizes, bank.groups, rates, ratios, starvation, limit, zeros
    )
    return Selection(donor, importance, threshold, inferior)


def match_filters(
    bank: FilterBank,
    importance: Tensor,
    *,
    rate: float | Sequence[float] | Tensor,
    local_ratio: float | Sequence[float | None] | None = 0.1,
    starvation: Tensor | None = None,
    starvation_limit: float | None = None,
    zero_is_inferior: bool | Sequence[bool] = False,
) -> Tensor:
    """Donor of every filter, int32 [F]: the row in the same layer that replaces it, or -1.

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
    return select_and_match(
        bank,
        importance,
        rate=rate,
        local_ratio=local_ratio,
        starvation=starvation,
        starvation_limit=starvation_limit,
        zero_is_inferior=zero_is_inferior,
    ).donor


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
    bank.check()
    check_rule(rule)
    check_vector(donor, "donor", bank.num_filters, torch.int32, bank.device)
    if bank.weights:
        torch.ops.we_kernels.crossover_(bank.weights, bank.filter_dims, donor, rule, validate)


@torch.no_grad()
def evolve_with_selection_(
    bank: FilterBank,
    *,
    rate: float | Sequence[float] | Tensor,
    local_ratio: float | Sequence[float | None] | None = 0.1,
    rule: str = "paper",
    starvation: Tensor | None = None,
    starvation_limit: float | None = None,
    zero_is_inferior: bool | Sequence[bool] = False,
) -> Selection:
    """`evolve_` with everything it finds."""
    bank.check()
    check_rule(rule)
    groups, device = bank.num_groups, bank.device
    rates = check_rates(rate, groups, device)
    ratios = check_local_ratios(local_ratio, groups)
    limit = check_starvation(starvation, starvation_limit, groups, device)
    zeros = check_zero_is_inferior(zero_is_inferior, groups)
    if not bank.weights:
        return _empty_selection(groups)
    return Selection(
        *torch.ops.we_kernels.evolve_(
            bank.weights, bank.filter_dims, bank.groups, rates, ratios, rule, starvation, limit, zeros
        )
    )


def evolve_(
    bank: FilterBank,
    *,
    rate: float | Sequence[float] | Tensor,
    local_ratio: float | Sequence[float | None] | None = 0.1,
    rule: str = "paper",
    starvation: Tensor | None = None,
    starvation_limit: float | None = None,
    zero_is_inferior: bool | Sequence[bool] = False,
) -> Tensor:
    """Importance, matching and crossover as one step; returns the donors, int32 [F].

    Arguments and errors are those of `match_filters` and `crossover_`. If any weight of the bank is not finite, the
    step changes nothing, the counters included.
    """
    return evolve_with_selection_(
        bank,
        rate=rate,
        local_ratio=local_ratio,
        rule=rule,
        starvation=starvation,
        starvation_limit=starvation_limit,
        zero_is_inferior=zero_is_inferior,
    ).donor


def _empty_selection(groups: int) -> Selection:
    no_filters = torch.empty(0, dtype=torch.int32, device="cpu")
    return Selection(no_filters, no_filters.float(), torch.zeros(groups, dtype=torch.float32, device="cpu"), no_filters)
