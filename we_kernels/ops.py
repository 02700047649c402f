"""The operators as PyTorch sees them: schemas with declared mutation, fake kernels, and the way to a backend.

They take plain lists of tensors and numbers, are traced by ``torch.compile(fullgraph=True)`` and checked by
``torch.library.opcheck``. The functions users call are in `functions`; they validate, these do not repeat it.
``torch.library.Library`` is used rather than ``torch.library.custom_op``: the latter's wrapper costs 98 us per call
on a list of 60 mutated tensors, this one 17 us (2 CPU cores, torch 2.13).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from . import backends
from .backends import low_rank, reference
from .checks import check_donors
from .layout import layout_of, segments_of

_LIBRARY = torch.library.Library("we_kernels", "DEF")


def _define(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> None:
    name = schema[: schema.index("(")]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, implementation, "CPU")
    _LIBRARY.impl(name, implementation, "CUDA")
    torch.library.register_fake(f"we_kernels::{name}", fake, lib=_LIBRARY)


def _filter_importance(weights: Sequence[Tensor], filter_dims: Sequence[int]) -> Tensor:
    layout = layout_of(weights, filter_dims, [0] * len(weights))
    importance: Tensor = backends.choose(weights[0].device).filter_importance(weights, filter_dims, layout)
    return importance


def _filter_importance_fake(weights: Sequence[Tensor], filter_dims: Sequence[int]) -> Tensor:
    return weights[0].new_empty((_count(weights, filter_dims),), dtype=torch.float32)


def _match_filters(
    importance: Tensor,
    sizes: Sequence[int],
    groups: Sequence[int],
    rates: Tensor,
    local_ratios: Sequence[float],
    starvation: Tensor | None,
    starvation_limit: float,
) -> tuple[Tensor, Tensor, Tensor]:
    segments = segments_of(tuple(sizes), tuple(groups))
    result: tuple[Tensor, Tensor, Tensor] = backends.choose(importance.device).match_filters(
        importance.contiguous(), segments, rates, local_ratios, starvation, starvation_limit
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
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        importance.new_empty(importance.shape, dtype=torch.int32),
        importance.new_empty((len(local_ratios),)),
        importance.new_empty((len(sizes),), dtype=torch.int32),
    )


def _crossover(weights: Sequence[Tensor], filter_dims: Sequence[int], donor: Tensor, rule: str, validate: bool) -> None:
    layout = layout_of(weights, filter_dims, [0] * len(weights))
    if validate:
        check_donors(donor, layout.segments)
    backends.choose(weights[0].device).crossover_(weights, filter_dims, layout, donor.contiguous(), rule)
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    layout = layout_of(weights, filter_dims, groups)
    result: tuple[Tensor, Tensor, Tensor, Tensor] = backends.choose(weights[0].device).evolve_(
        weights, filter_dims, layout, rates, local_ratios, rule, starvation, starvation_limit
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    num_filters, like = _count(weights, filter_dims), weights[0]
    return (
        like.new_empty((num_filters,), dtype=torch.int32),
        like.new_empty((num_filters,), dtype=torch.float32),
        like.new_empty((len(local_ratios),), dtype=torch.float32),
        like.new_empty((len(weights),), dtype=torch.int32),
    )


def _project_low_rank(
    weights: Sequence[Tensor],
    filter_dims: Sequence[int],
    ranks: Sequence[int],
    row_scales: Sequence[Tensor | None],
    bases: Sequence[Tensor],
    energy_transfer: bool,
    skip_below: float,
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.no_grad():
        if backends.forced(weights[0].device) == "torch":
            return reference.project_low_rank_(weights, filter_dims, ranks, row_scales, energy_transfer, skip_below)
        return low_rank.project_low_rank_(weights, filter_dims, ranks, row_scales, bases, energy_transfer, skip_below)


def _project_low_rank_fake(
    weights: Sequence[Tensor],
    filter_dims: Sequence[int],
    ranks: Sequence[int],
    row_scales: Sequence[Tensor | None],
    bases: Sequence[Tensor],
    energy_transfer: bool,
    skip_below: float,
) -> tuple[Tensor, Tensor, Tensor]:
    energy = weights[0].new_empty((len(weights),), dtype=torch.float64)
    return energy, torch.empty_like(energy), torch.empty_like(energy, dtype=torch.bool)


def _count(weights: Sequence[Tensor], filter_dims: Sequence[int]) -> int:
    return sum(weight.shape[dim] for weight, dim in zip(weights, filter_dims, strict=True))


_define("filter_importance(Tensor[] weights, int[] filter_dims) -> Tensor", _filter_importance, _filter_importance_fake)
_define(
    "match_filters(Tensor importance, int[] sizes, int[] groups, Tensor rates, float[] local_ratios, "
    "Tensor(a!)? starvation, float starvation_limit) -> (Tensor donor, Tensor threshold, Tensor inferior)",
    _match_filters,
    _match_filters_fake,
)
_define(
    "crossover_(Tensor(a!)[] weights, int[] filter_dims, Tensor donor, str rule, bool validate) -> ()",
    _crossover,
    _crossover_fake,
)
_define(
    "evolve_(Tensor(a!)[] weights, int[] filter_dims, int[] groups, Tensor rates, float[] local_ratios, str rule, "
    "Tensor(b!)? starvation, float starvation_limit) "
    "-> (Tensor donor, Tensor importance, Tensor threshold, Tensor inferior)",
    _evolve,
    _evolve_fake,
)
_define(
    "project_low_rank_(Tensor(a!)[] weights, int[] filter_dims, int[] ranks, Tensor?[] row_scales, Tensor(b!)[] bases, "
    "bool energy_transfer, float skip_below) -> (Tensor energy_before, Tensor energy_kept, Tensor skipped)",
    _project_low_rank,
    _project_low_rank_fake,
)
