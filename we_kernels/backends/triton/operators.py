"""The operators as launches: what each kernel gets, in which order."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...layout import Layout, Segments
from ...transfer import Place, upload
from . import tables
from .crossover import (
    FILTER_PROGRAMS,
    PROGRAMS,
    SEARCH,
    WARPS,
    crossover_kernel,
    match_and_cross_kernel,
    max_registers,
)
from .fields import TRITON_DTYPES
from .importance import importance_kernel
from .launch import launch
from .matching import matching_kernel
from .rank import KEYS, RANK_ROWS, donor_kernel
from .tables import Scratch
from .threshold import CHUNK, PIVOTS

MATCHING_WARPS = 8
THRESHOLD_LANES, THRESHOLD_ITEMS, THRESHOLD_CANDIDATES = 256, 8, 1024
"""Threads of a block, as many as its warps have, keys of each at a time, and possible thresholds that they hold."""

STARVATION_TILE = 128
"""Layers at a time (16 under the interpreter, whose scans are slow)."""

NEVER = 2**31 - 1
"""A starvation limit that no counter reaches."""


def filter_importance(weights: Sequence[Tensor], layout: Layout) -> Tensor:
    """float32 [F]."""
    place = Place.current(weights[0].device)
    importance = torch.empty(layout.num_filters, dtype=torch.float32, device=place.device)
    _launch_importance(_addresses(weights, place), layout, importance, place)
    return importance


def match_filters(
    importance: Tensor,
    segments: Segments,
    rates: Tensor,
    local_ratios: Sequence[float],
    starvation: Tensor | None,
    starvation_limit: float,
    zero_is_inferior: Sequence[bool] = (),
) -> tuple[Tensor, Tensor, Tensor]:
    """Donors int32 [F], thresholds float32 [G], inferior int32 [L]."""
    place = Place.current(importance.device)
    donor, threshold, inferior, work = _launch_matching(
        importance, segments, rates, local_ratios, starvation, starvation_limit, zero_is_inferior, place
    )
    static = tables.matching_tables(segments, len(local_ratios), place)
    arguments = (static.segments, static.slots, work.order, inferior, donor)
    launch(donor_kernel, segments.num_layers, importance.device, *arguments, BLOCK=256)
    return donor, threshold, inferior


def crossover_(weights: Sequence[Tensor], layout: Layout, donor: Tensor, rule: str) -> None:
    """In place, for donors int32 [F]."""
    place = Place.current(donor.device)
    static, addresses = tables.layer_tables(layout, place), _addresses(weights, place)
    for index in static.tiles:
        launch(
            crossover_kernel,
            min(layout.num_filters, FILTER_PROGRAMS),
            place.device,
            addresses,
            static.layers,
            static.layer_of_filter,
            layout.num_filters,
            donor,
            DTYPE=TRITON_DTYPES[index],
            INDEX=index,
            num_warps=WARPS,
            maxnreg=max_registers(index, rule == "released"),
            RELEASED=rule == "released",
        )


def evolve_(
    weights: Sequence[Tensor],
    layout: Layout,
    rates: Tensor,
    local_ratios: Sequence[float],
    rule: str,
    starvation: Tensor | None,
    starvation_limit: float,
    zero_is_inferior: Sequence[bool] = (),
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Donors, importances, thresholds, inferior; the crossover kernel reads the matches off the ranking itself."""
    place, segments = Place.current(weights[0].device), layout.segments
    addresses = _addresses(weights, place)
    importance = torch.empty(layout.num_filters, dtype=torch.float32, device=place.device)
    _launch_importance(addresses, layout, importance, place)
    donor, threshold, inferior, work = _launch_matching(
        importance, segments, rates, local_ratios, starvation, starvation_limit, zero_is_inferior, place
    )
    static = tables.layer_tables(layout, place)
    slots = tables.matching_tables(segments, len(local_ratios), place).slots
    for index in static.tiles:
        launch(
            match_and_cross_kernel,
            min(static.most_matches * static.parts, PROGRAMS),
            place.device,
            addresses,
            static.layers,
            slots,
            segments.num_layers,
            work.first_match,
            work.order,
            inferior,
            donor,
            static.parts,
            DTYPE=TRITON_DTYPES[index],
            INDEX=index,
            num_warps=WARPS,
            maxnreg=max_registers(index, rule == "released"),
            RELEASED=rule == "released",
            SEARCH=SEARCH,
        )
    return donor, importance, threshold, inferior


def _launch_importance(addresses: Tensor, layout: Layout, importance: Tensor, place: Place) -> None:
    static = tables.layer_tables(layout, place)
    for index, tiles in static.tiles.items():
        launch(
            importance_kernel,
            tiles.shape[0],
            place.device,
            addresses,
            static.layers,
            tiles,
            importance,
            DTYPE=TRITON_DTYPES[index],
        )


def _launch_matching(
    importance: Tensor,
    segments: Segments,
    rates: Tensor,
    local_ratios: Sequence[float],
    starvation: Tensor | None,
    starvation_limit: float,
    zero_is_inferior: Sequence[bool],
    place: Place,
) -> tuple[Tensor, Tensor, Tensor, Scratch]:
    """Donors (all -1 still), thresholds, inferior, and the ranking that the donors are read off."""
    device, groups = place.device, len(local_ratios)
    static = tables.matching_tables(segments, groups, place)
    # Behind the ratios of all groups their flags, so that one table holds both.
    ratios = upload((*local_ratios, *map(float, zero_is_inferior or [False] * groups)), torch.float32, place)
    work = tables.scratch(segments, groups, place)
    donor = torch.empty(segments.num_filters, dtype=torch.int32, device=device)
    threshold = torch.empty(groups, dtype=torch.float32, device=device)
    inferior = torch.empty(segments.num_layers, dtype=torch.int32, device=device)
    launch(
        matching_kernel,
        static.programs.shape[0],
        device,
        importance,
        static.programs,
        static.members,
        static.slots,
        static.slot_table,
        segments.num_layers,
        rates,
        ratios,
        groups,
        min(math.ceil(min(starvation_limit, NEVER)), NEVER),
        inferior if starvation is None else starvation,
        work.keys,
        work.candidates,
        work.progress.larger,
        work.progress.counted,
        work.progress.poisoned,
        work.progress.finished,
        work.order,
        work.descending,
        threshold,
        donor,
        inferior,
        work.first_match,
        num_warps=MATCHING_WARPS,
        CHUNK=CHUNK,
        PIVOTS=PIVOTS,
        LANES=THRESHOLD_LANES,
        ITEMS=THRESHOLD_ITEMS,
        CANDIDATES=THRESHOLD_CANDIDATES,
        ROWS=RANK_ROWS,
        KEYS=KEYS,
        STARVES=starvation is not None,
        LAYERS=16 if device.type == "cpu" else STARVATION_TILE,
    )
    return donor, threshold, inferior, work


def _addresses(weights: Sequence[Tensor], place: Place) -> Tensor:
    """int64 [L] on the device."""
    return upload(tuple(map(Tensor.data_ptr, weights)), torch.int64, place)
