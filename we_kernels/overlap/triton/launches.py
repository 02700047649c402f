"""`filter_overlap` as launches: rows of length 1 (per dtype), tiles (float32, float64), sums."""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from ...runtime.layout import Layout
from ...runtime.transfer import Place, table_of, table_to_device, to_device
from ...runtime.triton import tables
from ...runtime.triton.launch import launch
from ...runtime.triton.values import TRITON_DTYPES
from ...runtime.view import BankView
from .overlap import OVERLAP_DEPTH, OVERLAP_TILE, overlap_kernel, overlap_mean_kernel, unit_rows_kernel

_FLOAT64 = 1
"""Index in `layout.DTYPES`."""


class OverlapTables(NamedTuple):
    """What the kernels need beside `LayerTables`."""

    tiles: Tensor
    """int32 [T, 3]: layer, first row and first column of each tile on or above a layer's diagonal."""
    tile_starts: Tensor
    """int32 [L + 1]: each layer's part of `tiles`."""
    row_starts: Tensor
    """int64 [L]: where a layer's rows of length 1 begin, in the buffer of its precision."""
    elements: dict[int, int]
    """For float32 (0) and float64 (1), where a layer is computed in it: elements of that buffer."""


def filter_overlap(bank: BankView) -> tuple[Tensor, Tensor]:
    """Means float32 [L] and maxima float32 [F]."""
    layout, place, device = bank.layout, bank.place, bank.device
    layers, own = tables.layers(layout, place), _overlap_tables(layout, place)
    units = {
        wide: torch.empty(size, dtype=torch.float64 if wide else torch.float32, device=device).view(torch.float32)
        for wide, size in own.elements.items()
    }
    sums = torch.empty(len(own.tiles), dtype=torch.float32, device=device)
    mean = torch.empty(len(bank.weights), dtype=torch.float32, device=device)
    maximum_bits = torch.zeros(layout.num_filters, dtype=torch.int32, device=device)
    for index in layout.dtypes:
        launch(
            unit_rows_kernel,
            layout.num_filters,
            place,
            bank.addresses_on_device,
            layers,
            tables.layer_of_filter(layout, place),
            own.row_starts,
            units[int(index == _FLOAT64)],
            DTYPE=TRITON_DTYPES[index],
            INDEX=index,
            DEPTH=OVERLAP_DEPTH,
            BLOCK=256,
        )
    for wide, rows in units.items():
        launch(
            overlap_kernel,
            len(own.tiles),
            place,
            rows,
            layers,
            own.tiles,
            own.row_starts,
            sums,
            maximum_bits,
            ACC=tl.float64 if wide else tl.float32,
            TILE=OVERLAP_TILE,
            DEPTH=OVERLAP_DEPTH,
            num_warps=8,
        )
    launch(overlap_mean_kernel, len(bank.weights), place, sums, own.tile_starts, layers, mean, BLOCK=256)
    return mean, maximum_bits.view(torch.float32)


def _overlap_tables(layout: Layout, place: Place) -> OverlapTables:
    def make() -> OverlapTables:
        tiles, counts, starts = [], [], []
        elements: dict[int, int] = {}
        for index, layer in enumerate(layout.layers):
            first = range(0, layer.filters, OVERLAP_TILE)
            own = [(index, row, column) for row in first for column in first if row <= column]
            tiles += own
            counts.append(len(own))
            wide = int(layer.dtype == _FLOAT64)
            starts.append(elements.get(wide, 0))
            padded = -(-layer.channels * layer.kernel // OVERLAP_DEPTH) * OVERLAP_DEPTH
            if layer.filters:
                elements[wide] = starts[-1] + layer.filters * padded
        return OverlapTables(
            table_to_device(torch.tensor(tiles, dtype=torch.int32, device="cpu").reshape(-1, 3), place.device),
            to_device((0, *accumulate(counts)), torch.int32, place.device),
            to_device(tuple(starts), torch.int64, place.device),
            elements,
        )

    return table_of(layout, "overlap", place, make)
