"""What the kernels of a matching read besides importances and rates: device tables of segments, and scratch memory."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from ...runtime.layout import Layout, Segments
from ...runtime.transfer import Place, keep_for_graph, per_stream, table_of, table_to_device
from ...runtime.triton.tables import tiles
from .crossover import parts_of
from .matching import COUNTED_GROUP, PROGRAM_FIELDS, PROGRAM_WIDTH, RANKED_GROUP, RANKED_LAYER
from .rank import RANK_ROWS
from .starvation import SLOT_FIELDS, SLOT_WIDTH
from .threshold import CHUNK, PIVOTS, RANKED


class MatchingTables(NamedTuple):
    """Where the filters of layers and groups are."""

    segments: Tensor
    """int64 [L, 3]: filters, first filter, group."""
    programs: Tensor
    """int32 [P, 8]: `PROGRAM_FIELDS`: of groups, at least one each, then of layers; large ones first."""
    members: Tensor
    """int32 [F]: the filters, group by group."""
    slots: Tensor
    """int32 [L]: the layers, group by group."""
    slot_table: Tensor
    """int32 [L, 8]: `SLOT_FIELDS` of them."""


class Scratch(NamedTuple):
    """Passed from kernel to kernel of one call."""

    order: Tensor
    """int32 [F]: each layer's rows, by descending importance."""
    descending: Tensor
    """int32 [F]: their importances as integers."""
    first_match: Tensor
    """int32 [L + 1]: matched filters in the slots before each slot, and in all."""
    keys: Tensor
    """int32 [F]: the importances as integers, group by group."""
    candidates: Tensor
    """int32 [F]: those of them that a threshold may be."""
    progress: Progress


class Progress(NamedTuple):
    """Zero between calls: the last program to finish sets it back, since a launch that does would cost more."""

    larger: Tensor
    """int32 [G, PIVOTS]: filters counted so far that are larger than each pivot of the group."""
    counted: Tensor
    """int32 [G]: programs that have counted."""
    poisoned: Tensor
    """int32 [1]: importances that are not finite or negative."""
    finished: Tensor
    """int32 [1]: programs that are through."""


def matching_tables(segments: Segments, groups: int, place: Place) -> MatchingTables:
    """The tables of ``segments`` on the device."""

    def make() -> MatchingTables:
        by_size = sorted(range(segments.num_layers), key=lambda i: -segments.sizes[i])
        slots = segments.table[:, 2].argsort(stable=True)
        members = segments.table[:, 2].repeat_interleave(segments.table[:, 0]).argsort(stable=True)
        made = (
            segments.table,
            _programs(segments, groups, members, by_size),
            members.int(),
            slots.int(),
            _slot_table(segments, slots),
        )
        return MatchingTables(*(table_to_device(table, place.device) for table in made))

    return table_of(segments, f"matching of {groups} groups", place, make)


def work_of_crossover(layout: Layout, place: Place) -> tuple[int, int]:
    """The most filters that can get a donor, half of each layer's; and the programs that share the kernels of one, by
    the bank's largest number of kernels."""

    def make() -> tuple[int, int]:
        most_kernels = max((layer.channels for layer in layout.layers if not layer.blend), default=1)
        return sum(size // 2 for size in layout.segments.sizes), parts_of(most_kernels)

    return table_of(layout, "work of crossover", place, make)


def scratch(segments: Segments, groups: int, place: Place) -> Scratch:
    """Memory for one call on the current stream, reused by the next; under capture it belongs to the graph."""
    spare = "spare progress", place.device, groups

    def make() -> Scratch:
        progress: Progress | None = segments.tables.pop(spare, None) if place.capturing else None
        if progress:
            keep_for_graph(progress, place)
        return _new_scratch(segments, progress or _new_progress(groups, place.device), place.device)

    found = per_stream(segments, f"scratch of {groups} groups", place, make)
    if not place.capturing and spare not in segments.tables:
        # For the next graph: zeros made while it is captured would be written again, by a launch, at every replay.
        segments.tables[spare] = _new_progress(groups, place.device)
    return found


def _programs(segments: Segments, groups: int, members: Tensor, layers: Sequence[int]) -> Tensor:
    sizes = [0] * groups
    for size, group in zip(segments.sizes, segments.groups, strict=True):
        sizes[group] += size
    owners = []  # the fields of each one's programs, and the filters that one of them takes
    for group, (size, start) in enumerate(zip(sizes, [0, *accumulate(sizes)], strict=False)):
        own = members[start : start + size]
        consecutive = bool((own.diff() == 1).all())
        base = int(own[0]) if size and consecutive else -1
        kind, step = (RANKED_GROUP, RANK_ROWS) if size <= RANKED else (COUNTED_GROUP, CHUNK)
        owners.append((kind.value, group, 0, start, size, base, step))
    owners.sort(key=lambda owner: -owner[4])
    for layer in layers:
        size, start, _ = segments.table[layer].tolist()
        owners.append((RANKED_LAYER.value, layer, 0, start, size, start, RANK_ROWS))
    # A group without filters has a threshold, too.
    counts = [max(size, i < groups) for i, (*_, size, _, _) in enumerate(owners)]
    runs = tiles(range(len(owners)), counts, [owner[-1] for owner in owners])
    programs = torch.zeros((len(runs), PROGRAM_WIDTH.value), dtype=torch.int32, device="cpu")
    fields = torch.tensor(owners, dtype=torch.int32, device="cpu")[runs[:, 0].long(), : len(PROGRAM_FIELDS)]
    programs[:, : len(PROGRAM_FIELDS)] = fields
    programs[:, PROGRAM_FIELDS.index("first")] = runs[:, 1]
    return programs


def _slot_table(segments: Segments, slots: Tensor) -> Tensor:
    table = torch.zeros((len(slots), SLOT_WIDTH.value), dtype=torch.int32, device="cpu")
    filters, first_filter, group = segments.table[slots].T
    begins, ends = torch.ones_like(group), torch.ones_like(group)
    begins[1:] = ends[:-1] = group.diff() != 0
    fields = (slots, filters, first_filter, group, begins, ends)
    table[:, : len(SLOT_FIELDS)] = torch.stack([field.int() for field in fields], dim=1)
    return table


def _new_scratch(segments: Segments, progress: Progress, device: torch.device) -> Scratch:
    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int32, device=device)

    filters, layers = segments.num_filters, segments.num_layers
    return Scratch(empty(filters), empty(filters), empty(layers + 1), empty(filters), empty(filters), progress)


def _new_progress(groups: int, device: torch.device) -> Progress:
    zeros = torch.zeros(groups * (PIVOTS + 1) + 2, dtype=torch.int32, device=device)
    larger, counted, poisoned, finished = zeros.split([groups * PIVOTS, groups, 1, 1])
    return Progress(larger, counted, poisoned, finished)
