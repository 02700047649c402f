"""What the kernels of `reactivate_` read of a plan: made once, kept on the device."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...runtime.layout import DTYPES, Layer, Layout
from ...runtime.transfer import Place, refuse_capture, table_to_device, to_device
from ..draw import STREAM
from ..rule import DRAW, GIVEN, KEEP, MEAN, MEAN_OR_ONE
from . import sums, write
from .elements import ENTRIES, PLAN_FIELDS

_MEANS = (MEAN, MEAN_OR_ONE)


class Tiles(NamedTuple):
    """Of all tensors of one dtype."""

    dtype: int
    """Index in `DTYPES`."""
    writes: Tensor
    """int32, rows of `WRITE_TILE_FIELDS`."""
    sums: Tensor
    """int32, rows of `SUM_TILE_FIELDS`: those of means, of drawn norms, of living units."""
    prefixes: tuple[int, int, int]
    """How many of ``sums`` are needed where weights stay as drawn, get the living units' norm, or a given one."""


class PlanTables:
    """On one device; ``tables`` holds scratch memory, see `transfer.Owner`."""

    def __init__(self, plans: Tensor, bounds: Tensor, tiles: tuple[Tiles, ...], parts: int) -> None:
        self.plans = plans
        """int64 [L, ...], `PLAN_FIELDS`."""
        self.bounds = bounds
        """float64 [L]: of what is drawn before it is scaled."""
        self.tiles = tiles
        self.parts = parts
        self.tables: dict[tuple[object, ...], Any] = {}

    def scratch(self, place: Place, entries: int) -> tuple[Tensor, Tensor, Tensor]:
        """Sums and counts of parts, float64 and int64 [parts, 2]; norms as drawn, int64 [entries]."""
        sizes = ((2 * self.parts, torch.float64), (2 * self.parts, torch.int64), (entries, torch.int64))
        one, two, three = (torch.empty(size, dtype=dtype, device=place.device) for size, dtype in sizes)
        return one, two, three


class _Values(NamedTuple):
    """Of one tensor; starts are -1 where nothing is written."""

    row_start: int
    column_start: int
    groups: int
    row_value: int
    column_value: int


@lru_cache(maxsize=64)
def plan_tables(
    layout: Layout,
    rows: tuple[int, ...],
    columns: tuple[int, ...],
    groups: tuple[int, ...],
    row_values: tuple[int, ...],
    column_values: tuple[int, ...],
    device: torch.device,
) -> PlanTables:
    """Of tensors seen as filters of channels, with `UnitTensors`' places of units and values.

    Raises:
        RuntimeError: a graph is being recorded, and the tables are not there yet.
    """
    refuse_capture(Place.current(device))
    starts = [
        tuple(-1 if value == KEEP else start for start, value in zip(*axis, strict=True))
        for axis in ((rows, row_values), (columns, column_values))
    ]
    values = list(map(_Values, *starts, groups, row_values, column_values))
    parts = drawn = given = 0
    fields, tiles = [], [_Lists() for _ in DTYPES]
    for tensor, (layer, own) in enumerate(zip(layout.layers, values, strict=True)):
        lists, used = tiles[layer.dtype], (own.row_value, own.column_value)
        first = parts
        cuts = _parts(layer.filters * layer.channels * layer.kernel)
        means = len(cuts) if set(_MEANS) & set(used) else 0
        lives = len(cuts) if DRAW in used else 0
        for kind, into, count in ((sums.MEAN_OF, lists.means, means), (sums.LIVING, lists.lives, lives)):
            into += [(kind.value, tensor, *cut, parts + i) for i, cut in enumerate(cuts[:count])]
            parts += count
        for axis, value in enumerate(used):
            if value != KEEP:
                lists.writes += _write_tiles(tensor, axis, layer, own)
            if value == DRAW:
                entries = _entries(layer, own, axis)
                lists.draws += [(sums.DRAWN.value, tensor, start, size, place) for place, start, size in entries]
        row = {
            **own._asdict(),
            "rows": layer.filters,
            "channels": layer.channels,
            "kernel": layer.kernel,
            "group_rows": layer.filters // own.groups,
            "columns": layer.channels * own.groups,
            "channels_last": int(layer.channel_stride < layer.stride2),
            "stream": drawn | STREAM,
            "given": given,
            "mean_first": first,
            "mean_parts": means,
            "live_first": first + means,
            "live_parts": lives,
        }
        fields.append([row[name] for name in PLAN_FIELDS])
        drawn += DRAW in used
        given += GIVEN in used
    bounds = [1 / math.sqrt(layer.channels * layer.kernel) for layer in layout.layers]
    return PlanTables(
        table_to_device(torch.tensor(fields, dtype=torch.int64, device="cpu"), device),
        to_device(tuple(bounds), torch.float64, device),
        tuple(lists.on(dtype, device) for dtype, lists in enumerate(tiles) if lists.writes),
        parts,
    )


class _Lists:
    """Tiles of one dtype."""

    def __init__(self) -> None:
        self.writes: list[tuple[int, ...]] = []
        self.means: list[tuple[int, ...]] = []
        self.draws: list[tuple[int, ...]] = []
        self.lives: list[tuple[int, ...]] = []

    def on(self, dtype: int, device: torch.device) -> Tiles:
        means, draws, lives = len(self.means), len(self.draws), len(self.lives)
        ordered = self.means + self.draws + self.lives
        prefixes = means, means + draws + lives, means + draws
        return Tiles(dtype, _table(self.writes, device), _table(ordered, device), prefixes)


def _table(rows: Sequence[tuple[int, ...]], device: torch.device) -> Tensor:
    return table_to_device(torch.tensor(rows, dtype=torch.int32, device="cpu"), device)


def _parts(elements: int) -> list[tuple[int, int]]:
    """First element and number of elements of each."""
    count = min(sums.MOST_PARTS, -(-elements // sums.PART))
    step = -(-elements // (count * sums.BLOCK)) * sums.BLOCK
    return [(start, min(step, elements - start)) for start in range(0, elements, step)]


def _entries(layer: Layer, own: _Values, axis: int) -> Iterator[tuple[int, int, int]]:
    """Runs of at most `ENTRIES` rows or columns: place in the table of units, the first, how many."""
    count = layer.channels * own.groups if axis else layer.filters
    for first in range(0, count, ENTRIES.value):
        yield own[axis] + first, first, min(ENTRIES.value, count - first)


def _write_tiles(tensor: int, axis: int, layer: Layer, own: _Values) -> Iterable[tuple[int, ...]]:
    """`WRITE_TILE_FIELDS`."""
    if axis == 0:
        length, step = layer.channels * layer.kernel, write.SPAN
    else:
        length, step = layer.filters // own.groups, max(write.SPAN // layer.kernel, 1)
    for entries in _entries(layer, own, axis):
        for low in range(0, length, step):
            yield tensor, axis, *entries, low, min(low + step, length)
