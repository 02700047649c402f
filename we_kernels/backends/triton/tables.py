"""What the kernels read besides weights, addresses and ratios: device tables of layouts, and scratch memory.

Tables of a layout are copied once per device, scratch is kept per stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ...layout import DTYPES, Layer, Layout, Segments
from ...transfer import Place, keep_for_graph, refuse_capture, upload
from .crossover import parts_of
from .fields import EXTRA_FIELDS
from .importance import kind_of, rows_per_program
from .matching import COUNTED_GROUP, PROGRAM_FIELDS, PROGRAM_WIDTH, RANKED_GROUP, RANKED_LAYER
from .rank import RANK_ROWS
from .starvation import SLOT_FIELDS, SLOT_WIDTH
from .threshold import CHUNK, PIVOTS, RANKED

__all__ = [
    "LayerTables",
    "MatchingTables",
    "Scratch",
    "chunks",
    "common_runs",
    "keep_for_graph",
    "layer_tables",
    "matching_tables",
    "refuse_capture",
    "scratch",
    "upload",
]

_matching: WeakKeyDictionary[Segments, dict[tuple[torch.device, int], MatchingTables]] = WeakKeyDictionary()
_layers: WeakKeyDictionary[Layout, dict[torch.device, LayerTables]] = WeakKeyDictionary()
_chunks: WeakKeyDictionary[Layout, dict[tuple[torch.device, int], dict[int, Tensor]]] = WeakKeyDictionary()
_scratch: WeakKeyDictionary[Segments, dict[tuple[torch.device, int, int], Scratch]] = WeakKeyDictionary()
_spare: WeakKeyDictionary[Segments, dict[tuple[torch.device, int], Progress]] = WeakKeyDictionary()


class MatchingTables(NamedTuple):
    """Where the filters of layers and groups are."""

    segments: Tensor
    """int64 [L, 3]: filters, first filter, group."""
    tiles: Tensor
    """int32 [T, 2]: layer and first row of every run of `RANK_ROWS` filters, those of large layers first."""
    programs: Tensor
    """int32 [P, 8]: `PROGRAM_FIELDS`: of groups, at least one each, then of layers; large ones first."""
    members: Tensor
    """int32 [F]: the filters, group by group."""
    slots: Tensor
    """int32 [L]: the layers, group by group."""
    slot_table: Tensor
    """int32 [L, 8]: `SLOT_FIELDS` of them."""


class LayerTables(NamedTuple):
    """How the weights lie in memory."""

    layers: Tensor
    """int64 [L, 17]: the fields of `Layer`, then `EXTRA_FIELDS`."""
    layer_of_filter: Tensor
    """int32 [F]."""
    tiles: dict[int, Tensor]
    """For each dtype in the bank (its index in `DTYPES`): int64 [T, 8], `TILE_FIELDS` of each importance tile, those
    with long rows first."""
    most_matches: int
    """At most half of a layer's filters get a donor."""
    parts: int
    """Programs that share the kernels of a filter that is crossed over: by the bank's largest number of kernels."""


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


def matching_tables(segments: Segments, groups: int, where: Place | torch.device) -> MatchingTables:
    """The tables of ``segments`` on the device, made at the first call."""
    place = Place.of(where)
    device = place.device
    cache = _matching.setdefault(segments, {})
    tables = cache.get((device, groups))
    if tables is None:
        refuse_capture(place)
        by_size = sorted(range(segments.num_layers), key=lambda i: -segments.sizes[i])
        slots = segments.table[:, 2].argsort(stable=True)
        members = segments.table[:, 2].repeat_interleave(segments.table[:, 0]).argsort(stable=True)
        tables = cache[device, groups] = MatchingTables(
            segments.table.to(device),
            _tiles(by_size, [segments.sizes[i] for i in by_size], [RANK_ROWS] * len(by_size)).to(device),
            _programs(segments, groups, members, by_size).to(device),
            members.int().to(device),
            slots.int().to(device),
            _slot_table(segments, slots).to(device),
        )
    keep_for_graph(segments, place)
    return tables


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
    tiles = _tiles(range(len(owners)), counts, [owner[-1] for owner in owners])
    programs = torch.zeros((len(tiles), PROGRAM_WIDTH.value), dtype=torch.int32, device="cpu")
    fields = torch.tensor(owners, dtype=torch.int32, device="cpu")[tiles[:, 0].long(), : len(PROGRAM_FIELDS)]
    programs[:, : len(PROGRAM_FIELDS)] = fields
    programs[:, PROGRAM_FIELDS.index("first")] = tiles[:, 1]
    return programs


def _slot_table(segments: Segments, slots: Tensor) -> Tensor:
    table = torch.zeros((len(slots), SLOT_WIDTH.value), dtype=torch.int32, device="cpu")
    filters, first_filter, group = segments.table[slots].T
    begins, ends = torch.ones_like(group), torch.ones_like(group)
    begins[1:] = ends[:-1] = group.diff() != 0
    fields = (slots, filters, first_filter, group, begins, ends)
    table[:, : len(SLOT_FIELDS)] = torch.stack([field.int() for field in fields], dim=1)
    return table


def layer_tables(layout: Layout, where: Place | torch.device) -> LayerTables:
    """The tables of ``layout`` on the device, made at the first call."""
    place = Place.of(where)
    device = place.device
    cache = _layers.setdefault(layout, {})
    tables = cache.get(device)
    if tables is None:
        refuse_capture(place)
        rows = [(layer.channels * layer.kernel, _is_dense(layer), is_run(layer)) for layer in layout.layers]
        by_row = sorted(range(len(rows)), key=lambda i: -rows[i][0])
        extra = torch.tensor(rows, dtype=torch.int64, device="cpu").reshape(-1, len(EXTRA_FIELDS))
        tables = cache[device] = LayerTables(
            torch.cat([layout.table, extra], dim=1).to(device),
            layout.segments.layer_of_filter(torch.device("cpu")).int().to(device),
            {
                dtype: _row_tiles([i for i in by_row if layout.layers[i].dtype == dtype], layout, rows).to(device)
                for dtype in {layer.dtype for layer in layout.layers if layer.filters}
            },
            sum(size // 2 for size in layout.segments.sizes),
            parts_of(max((layer.channels for layer in layout.layers if not layer.blend), default=1)),
        )
    keep_for_graph(layout, place)
    return tables


def chunks(layout: Layout, size: int, place: Place) -> dict[int, Tensor]:
    """For each dtype in the bank: int32 [T, 2], layer and number of every run of ``size`` elements of every tensor."""
    device = place.device
    cache = _chunks.setdefault(layout, {})
    found = cache.get((device, size))
    if found is None:
        refuse_capture(place)
        found = cache[device, size] = {}
        for dtype in range(len(DTYPES)):
            part = [(i, layer) for i, layer in enumerate(layout.layers) if layer.dtype == dtype and layer.filters]
            if part:
                counts = [-(-layer.filters * layer.channels * layer.kernel // size) for _, layer in part]
                found[dtype] = _tiles([i for i, _ in part], counts, [1] * len(part)).to(device)
    keep_for_graph(layout, place)
    return found


def common_runs(layouts: Sequence[Layout], per_filter: bool) -> tuple[int, ...]:
    """For each layer, 1 if in all layouts the tensor's elements lie in one run of memory, in the same order.

    ``per_filter``: and filter after filter.
    """
    by_layer = zip(*(layout.layers for layout in layouts), strict=True)
    return tuple(
        int(len(set(layers)) == 1 and is_run(layers[0]) and not (per_filter and _mixes_filters(layers[0])))
        for layers in by_layer
    )


def _mixes_filters(layer: Layer) -> bool:
    return layer.filters > 1 and layer.filter_stride != layer.channels * layer.kernel


def scratch(segments: Segments, groups: int, where: Place | torch.device) -> Scratch:
    """Memory for one call on the current stream, reused by the next; under capture it belongs to the graph."""
    place = Place.of(where)
    cache, spares = _scratch.setdefault(segments, {}), _spare.setdefault(segments, {})
    kind = (place.device, groups)
    if place.capturing:
        progress = spares.pop(kind, None)
        if progress:
            keep_for_graph(progress, place)
        return _new_scratch(segments, progress or _new_progress(groups, place.device), place.device)
    key = (*kind, place.stream)
    if key not in cache:
        cache[key] = _new_scratch(segments, _new_progress(groups, place.device), place.device)
    if kind not in spares:
        # For the next graph: zeros made while it is captured would be written again, by a launch, at every replay.
        spares[kind] = _new_progress(groups, place.device)
    return cache[key]


def _new_scratch(segments: Segments, progress: Progress, device: torch.device) -> Scratch:
    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int32, device=device)

    filters, layers = segments.num_filters, segments.num_layers
    return Scratch(empty(filters), empty(filters), empty(layers + 1), empty(filters), empty(filters), progress)


def _new_progress(groups: int, device: torch.device) -> Progress:
    zeros = torch.zeros(groups * (PIVOTS + 1) + 2, dtype=torch.int32, device=device)
    larger, counted, poisoned, finished = zeros.split([groups * PIVOTS, groups, 1, 1])
    return Progress(larger, counted, poisoned, finished)


def _tiles(layers: Iterable[int], sizes: Sequence[int], rows: Sequence[int]) -> Tensor:
    """int32 [T, 2]: (layer, first row) of every run of ``rows`` filters of every layer."""
    step = torch.tensor(rows, dtype=torch.int64, device="cpu")
    count = (torch.tensor(sizes, dtype=torch.int64, device="cpu") + step - 1) // step
    layer = torch.tensor(list(layers), dtype=torch.int64, device="cpu").repeat_interleave(count)
    tile_in_layer = torch.arange(len(layer), device="cpu") - (count.cumsum(0) - count).repeat_interleave(count)
    return torch.stack([layer, tile_in_layer * step.repeat_interleave(count)], dim=1).int().contiguous()


def _row_tiles(indices: Sequence[int], layout: Layout, rows: Sequence[tuple[int, bool, int]]) -> Tensor:
    """int64 [T, 8]: `TILE_FIELDS` of what each program of the importances takes, in the order of ``indices``."""
    layers = [layout.layers[i] for i in indices]
    kinds = [kind_of(*rows[i][:2]) for i in indices]
    tiles = _tiles(range(len(layers)), [layer.filters for layer in layers], [rows_per_program(kind) for kind in kinds])
    of_layers = [
        (i, layer.filters, rows[i][0], layer.filter_stride, layer.first_filter, layer.channels, kind)
        for i, layer, kind in zip(indices, layers, kinds, strict=True)
    ]
    of_tiles = torch.tensor(of_layers, dtype=torch.int64, device="cpu")[tiles[:, 0].long()]
    return torch.cat([of_tiles[:, :1], tiles[:, 1:].long(), of_tiles[:, 1:]], dim=1).contiguous()


def _is_dense(layer: Layer) -> bool:
    """The elements of a filter fill one run of memory, in any order."""
    return _fill_run(layer[1:5], layer[6:10])


def is_run(layer: Layer) -> int:
    """1 if the elements of the whole tensor fill one run of memory, in any order."""
    return int(_fill_run(layer[:5], layer[5:10]))


def _fill_run(sizes: Sequence[int], steps: Sequence[int]) -> bool:
    reach = 1
    for step, size in sorted(zip(steps, sizes, strict=True)):
        if size > 1:
            if step != reach:
                return False
            reach *= size
    return True
