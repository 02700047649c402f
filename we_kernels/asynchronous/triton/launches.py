"""Asynchronous updates as launches: one for a selection, one per dtype for a snapshot or a step of SGD."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from ...runtime.layout import DTYPES, Layout, Segments, forms_of, layout_of
from ...runtime.transfer import Place, keep_for_graph, refuse_capture, table_of, table_to_device, upload
from ...runtime.triton import tables
from ...runtime.triton.launch import launch
from ...runtime.triton.values import TRITON_DTYPES
from ...runtime.view import BankView
from ..rule import SgdRule, SgdTensors
from . import sgd
from .select import MAX_REGISTERS, select_kernel
from .sgd import sgd_kernel
from .snapshot import snapshot_kernel

BITS = (tl.int32, tl.int64, tl.int16, tl.int16)
"""As wide as each of `DTYPES`."""

MAX_ELEMENTS = 2**31 - 1

SELECT_ROWS, SELECT_KEYS = 32, 128
"""Filters of a program, and filters that they are compared with at a time."""


def select_filters(segments: Segments, rate: Tensor, seed: int, step: Tensor, replacement: bool) -> Tensor:
    """bool [F]."""
    place = Place.current(rate.device)
    selected = torch.empty(segments.num_filters, dtype=torch.bool, device=place.device)
    tiles = table_of(
        segments,
        "selection tiles",
        place,
        lambda: table_to_device(tables.tiles(range(segments.num_layers), segments.sizes, SELECT_ROWS), place.device),
    )
    launch(
        select_kernel,
        len(tiles),
        place,
        table_of(segments, "segments", place, lambda: table_to_device(segments.table, place.device)),
        tiles,
        rate,
        upload((seed,), torch.int64, place),
        step,
        selected.view(torch.uint8),
        maxnreg=MAX_REGISTERS,
        ROWS=SELECT_ROWS,
        KEYS=SELECT_KEYS,
        REPLACEMENT=replacement,
    )
    return selected


def copy_unselected(bank: BankView, selected: Tensor, buffer: Tensor, restore: bool) -> None:
    """Filters that are not selected, to their places in ``buffer``; ``restore``: back from there."""
    layout, place = bank.layout, bank.place
    start = buffer.data_ptr()
    places = upload(tuple(start + offset for offset in layout.byte_offsets[:-1]), torch.int64, place)
    for index, tiles in tables.row_tiles(layout, place).items():
        launch(
            snapshot_kernel,
            len(tiles),
            place,
            bank.addresses_on_device,
            tables.layers(layout, place),
            tiles,
            places,
            selected.view(torch.uint8),
            int(restore),
            DTYPE=BITS[index],
        )


def asynchronous_sgd_(tensors: SgdTensors, selected: Tensor, rule: SgdRule) -> None:
    """In place; rounds as PyTorch's foreach kernels do on CUDA."""
    place = Place.current(selected.device)
    buffers = tensors.momentum_buffers or tensors.params  # without momentum they are not touched
    dims = tuple(max(dim, 0) for dim in tensors.filter_dims)
    lists = tensors.params, tensors.grads, buffers
    layouts = tuple(layout_of(forms_of(each), dims) for each in lists)
    static = _sgd_tables(layouts, tuple(dim >= 0 for dim in tensors.filter_dims), place.device)
    keep_for_graph(static, place)
    addresses = [upload(tuple(map(Tensor.data_ptr, each)), torch.int64, place) for each in lists]
    scalars = upload((rule.weight_decay, rule.momentum, 1 - rule.dampening), torch.float64, place)
    for index, tiles in static.tiles:
        launch(
            sgd_kernel,
            len(tiles),
            place,
            *addresses,
            static.layouts,
            tiles,
            upload(tuple(map(int, tensors.first_steps)), torch.int32, place),
            selected.view(torch.uint8),
            scalars,
            rule.lr,
            int(rule.weight_decay != 0),
            int(rule.momentum != 0),
            int(rule.nesterov),
            int(rule.maximize),
            num_warps=sgd.WARPS,
            DTYPE=TRITON_DTYPES[index],
            BLOCK=sgd.BLOCK,
        )


class _SgdTables(NamedTuple):
    layouts: Tensor
    """int64 [L, ...]: `sgd.FIELDS`, then the fields of the three layers."""
    tiles: tuple[tuple[int, Tensor], ...]
    """For each dtype: int32 [T, 2], tensor and block."""


@lru_cache(maxsize=64)
def _sgd_tables(layouts: tuple[Layout, ...], masked: tuple[bool, ...], device: torch.device) -> _SgdTables:
    refuse_capture(Place.current(device))
    rows, first_filter = [], 0
    for layers, is_masked in zip(zip(*(layout.layers for layout in layouts), strict=True), masked, strict=True):
        layer = layers[0]
        row = layer.channels * layer.kernel
        total = layer.filters * row
        if total > MAX_ELEMENTS:
            raise ValueError(f"a parameter has {total} elements, more than the {MAX_ELEMENTS} of one launch")
        alike = all(other[:10] == layer[:10] for other in layers)
        run = layer.filter_stride if layer.filters > 1 else row
        head = (total, run, layer.filters, int(alike and tables.is_run(layer)), first_filter if is_masked else -1)
        rows.append((*head, *layers[0], *layers[1], *layers[2]))
        first_filter += layer.filters if is_masked else 0
    tiles = []
    for index in range(len(DTYPES)):
        own = [i for i, layer in enumerate(layouts[0].layers) if layer.dtype == index]
        blocks = [-(-rows[i][0] // sgd.BLOCK) for i in own]
        if own:
            tiles.append((index, table_to_device(tables.tiles(own, blocks, 1), device)))
    return _SgdTables(table_to_device(torch.tensor(rows, dtype=torch.int64, device="cpu"), device), tuple(tiles))
