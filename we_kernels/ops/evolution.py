"""Importance, matching and crossover, and the three as one step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .. import backends
from ..checks import check_donors
from ..layout import layout_of, segments_of
from .library import count_filters, define


def _filter_importance(weights: Sequence[Tensor], filter_dims: Sequence[int]) -> Tensor:
    layout = layout_of(weights, filter_dims, [0] * len(weights))
    importance: Tensor = backends.choose(weights[0].device, "filter_importance").filter_importance(
        weights, filter_dims, layout
    )
    return importance


def _filter_importance_fake(weights: Sequence[Tensor], filter_dims: Sequence[int]) -> Tensor:
    return weights[0].new_empty((count_filters(weights, filter_dims),), dtype=torch.float32)


def _match_filters(
    importance: Tensor,
    sizes: Sequence[int],
    groups: Sequence[int],
    rates: Tensor,
    local_ratios: Sequence[float],
    starvation: Tensor | None,
    starvation_limit: float,
    zero_is_inferior: Sequence[bool] = (),
) -> tuple[Tensor, Tensor, Tensor]:
    segments = segments_of(tuple(sizes), tuple(groups))
    result: tuple[Tensor, Tensor, Tensor] = backends.choose(importance.device, "match_filters").match_filters(
        importance.contiguous(), segments, rates, local_ratios, starvation, starvation_limit, zero_is_inferior
    )
    if starvation is not None:
        increment_version(starvation)
    return result


def _match_filters_fake(
    importance: Tensor,
    sizes: Sequence[int],
    groups: Sequence[int],
    rates: Tensor,
    local_ratios: Sequence[float],
    starvation: Tensor | None,
    starvation_limit: float,
    zero_is_inferior: Sequence[bool] = (),
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        importance.new_empty(importance.shape, dtype=torch.int32),
        importance.new_empty((len(local_ratios),), dtype=torch.float32),
        importance.new_empty((len(sizes),), dtype=torch.int32),
    )


def _crossover(weights: Sequence[Tensor], filter_dims: Sequence[int], donor: Tensor, rule: str, validate: bool) -> None:
    layout = layout_of(weights, filter_dims, [0] * len(weights))
    if validate:
        check_donors(donor, layout.segments)
    backends.choose(weights[0].device, "crossover_").crossover_(weights, filter_dims, layout, donor.contiguous(), rule)
    increment_version(weights)


def _crossover_fake(
    weights: Sequence[Tensor], filter_dims: Sequence[int], donor: Tensor, rule: str, validate: bool
) -> None:
    return None


def _evolve(
    weights: Sequence[Tensor],
    filter_dims: Sequence[int],
    groups: Sequence[int],
    rates: Tensor,
    local_ratios: Sequence[float],
    rule: str,
    starvation: Tensor | None,
    starvation_limit: float,
    zero_is_inferior: Sequence[bool] = (),
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    layout = layout_of(weights, filter_dims, groups)
    result: tuple[Tensor, Tensor, Tensor, Tensor] = backends.choose(weights[0].device, "evolve_").evolve_(
        weights, filter_dims, layout, rates, local_ratios, rule, starvation, starvation_limit, zero_is_inferior
    )
    increment_version(weights)
    if starvation is not None:
        increment_version(starvation)
    return result


def _evolve_fake(
    weights: Sequence[Tensor],
    filter_dims: Sequence[int],
    groups: Sequence[int],
    rates: Tensor,
    local_ratios: Sequence[float],
    rule: str,
    starvation: Tensor | None,
    starvation_limit: float,
    zero_is_inferior: Sequence[bool] = (),
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num_filters, like = count_filters(weights, filter_dims), weights[0]
    return (
        like.new_empty((num_filters,), dtype=torch.int32),
        like.new_empty((num_filters,), dtype=torch.float32),
        like.new_empty((len(local_ratios),), dtype=torch.float32),
        like.new_empty((len(weights),), dtype=torch.int32),
    )


define("filter_importance(Tensor[] weights, int[] filter_dims) -> Tensor", _filter_importance, _filter_importance_fake)
define(
    "match_filters(Tensor importance, int[] sizes, int[] groups, Tensor rates, float[] local_ratios, "
    "Tensor(a!)? starvation, float starvation_limit, bool[] zero_is_inferior=[]) "
    "-> (Tensor donor, Tensor threshold, Tensor inferior)",
    _match_filters,
    _match_filters_fake,
)
define(
    "crossover_(Tensor(a!)[] weights, int[] filter_dims, Tensor donor, str rule, bool validate) -> ()",
    _crossover,
    _crossover_fake,
)
define(
    "evolve_(Tensor(a!)[] weights, int[] filter_dims, int[] groups, Tensor rates, float[] local_ratios, str rule, "
    "Tensor(b!)? starvation, float starvation_limit, bool[] zero_is_inferior=[]) "
    "-> (Tensor donor, Tensor importance, Tensor threshold, Tensor inferior)",
    _evolve,
    _evolve_fake,
)
