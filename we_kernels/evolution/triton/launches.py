"""An evolution as launches: what each kernel gets, in which order."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...runtime.layout import Segments
from ...runtime.transfer import Place, upload
from ...runtime.triton import tables
from ...runtime.triton.launch import launch
from ...runtime.triton.values import TRITON_DTYPES
from ...runtime.view import BankView
from ..rule import MatchingRule
from .crossover import (
    FILTER_PROGRAMS,
    PROGRAMS,
    SEARCH,
    WARPS,
    crossover_kernel,
    match_and_cross_kernel,
    max_registers,
)
from .importance import importance_kernel
from .matching import matching_kernel
from .rank import KEYS, RANK_ROWS, donor_kernel
from .tables import Scratch, matching_tables, scratch, work_of_crossover
from .threshold import CHUNK, PIVOTS

MATCHING_WARPS = 8
THRESHOLD_LANES, THRESHOLD_ITEMS, THRESHOLD_CANDIDATES = 256, 8, 1024
"""Threads of a block, as many as its warps have, keys of each at a time, and possible thresholds that they hold."""

STARVATION_TILE = 128
"""Layers at a time (16 under the interpreter, whose scans are slow)."""

NEVER = 2**31 - 1
"""A starvation limit that no counter reaches."""


def filter_importance(bank: BankView) -> Tensor:
    """float32 [F]; float64 weights are summed in float64, all others in float32. One launch per dtype."""
    importance = torch.empty(bank.layout.num_filters, dtype=torch.float32, device=bank.device)
    layers = tables.layers(bank.layout, bank.place)
    for index, tiles in tables.row_tiles(bank.layout, bank.place).items():
        launch(
            importance_kernel,
            tiles.shape[0],
            bank.place,
            bank.addresses_on_device,
            layers,
            tiles,
            importance,
            DTYPE=TRITON_DTYPES[index],
        )
    return importance


def match_filters(importance: Tensor, segments: Segments, rule: MatchingRule) -> tuple[Tensor, Tensor, Tensor]:
    """Donors int32 [F], thresholds float32 [G] and numbers of inferior filters int32 [L], in two launches."""
    place = Place.current(importance.device)
    donor, threshold, inferior, work = _launch_matching(importance, segments, rule, place)
    static = matching_tables(segments, rule.groups, place)
    launch(
        donor_kernel,
        segments.num_layers,
        place,
        static.segments,
        static.slots,
        work.order,
        inferior,
        donor,
        BLOCK=256,
    )
    return donor, threshold, inferior


def crossover_(bank: BankView, donor: Tensor, rule: str) -> None:
    """In place; ``donor`` is int32 [F], entries outside [0, N) count as -1. One launch per dtype."""
    layout, place = bank.layout, bank.place
    for index in layout.dtypes:
        launch(
            crossover_kernel,
            min(layout.num_filters, FILTER_PROGRAMS),
            place,
            bank.addresses_on_device,
            tables.layers(layout, place),
            tables.layer_of_filter(layout, place),
            layout.num_filters,
            donor,
            DTYPE=TRITON_DTYPES[index],
            INDEX=index,
            num_warps=WARPS,
            maxnreg=max_registers(index, rule == "released"),
            RELEASED=rule == "released",
        )


def evolve_(bank: BankView, crossover: str, rule: MatchingRule) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Donors, importances, thresholds and numbers of inferior filters: three launches, whatever the number of layers
    (importance and crossover once more for every further dtype). The crossover reads the matches off the ranking."""
    layout, place = bank.layout, bank.place
    segments = layout.segments
    importance = filter_importance(bank)
    donor, threshold, inferior, work = _launch_matching(importance, segments, rule, place)
    matches, parts = work_of_crossover(layout, place)
    layers, slots = tables.layers(layout, place), matching_tables(segments, rule.groups, place).slots
    for index in layout.dtypes:
        launch(
            match_and_cross_kernel,
            min(matches * parts, PROGRAMS),
            place,
            bank.addresses_on_device,
            layers,
            slots,
            segments.num_layers,
            work.first_match,
            work.order,
            inferior,
            donor,
            parts,
            DTYPE=TRITON_DTYPES[index],
            INDEX=index,
            num_warps=WARPS,
            maxnreg=max_registers(index, crossover == "released"),
            RELEASED=crossover == "released",
            SEARCH=SEARCH,
        )
    return donor, importance, threshold, inferior


def _launch_matching(
    importance: Tensor, segments: Segments, rule: MatchingRule, place: Place
) -> tuple[Tensor, Tensor, Tensor, Scratch]:
    """Donors (all -1 still), thresholds, inferior, and the ranking that the donors are read off."""
    static, work = matching_tables(segments, rule.groups, place), scratch(segments, rule.groups, place)
    donor, threshold, inferior = rule.new_selection(segments, place.device)
    launch(
        matching_kernel,
        static.programs.shape[0],
        place,
        importance,
        static.programs,
        static.members,
        static.slots,
        static.slot_table,
        segments.num_layers,
        rule.rates,
        upload(rule.table, torch.float32, place),
        rule.groups,
        min(math.ceil(min(rule.starvation_limit, NEVER)), NEVER),
        inferior if rule.starvation is None else rule.starvation,
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
        STARVES=rule.starvation is not None,
        LAYERS=16 if place.device.type == "cpu" else STARVATION_TILE,
    )
    return donor, threshold, inferior, work
