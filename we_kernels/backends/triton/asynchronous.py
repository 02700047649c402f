"""Asynchronous updates as launches: one for a selection, one per dtype for a snapshot or a step of SGD."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from operator import methodcaller
from typing import NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from ...layout import DTYPES, Layout, Segments, layout_of
from . import sgd, tables
from .fields import TRITON_DTYPES
from .launch import launch
from .rank import RANK_ROWS
from .select import MAX_REGISTERS, select_kernel
from .sgd import sgd_kernel
from .snapshot import snapshot_kernel

BITS = (tl.int32, tl.int64, tl.int16, tl.int16)
"""As wide as each of `DTYPES`."""

MAX_ELEMENTS = 2**31 - 1


def select_filters(segments: Segments, rate: Tensor, seed: int, step: Tensor, replacement: bool) -> Tensor:
    """bool [F]."""
    device = rate.device
    selected = torch.empty(segments.num_filters, dtype=torch.bool, device=device)
    static = tables.matching_tables(segments, segments.num_groups, device)
    launch(
        select_kernel,
        len(static.tiles),
        device,
        static.segments,
        static.tiles,
        rate,
        tables.upload((seed,), torch.int64, device),
        step,
        selected.view(torch.uint8),
        maxnreg=MAX_REGISTERS,
        ROWS=RANK_ROWS,
        KEYS=128,
        REPLACEMENT=replacement,
    )
    return selected


def copy_unselected(weights: Sequence[Tensor], layout: Layout, selected: Tensor, buffer: Tensor, restore: bool) -> None:
    """Filters that are not selected, to their places in the buffer or back."""
    device = buffer.device
    static = tables.layer_tables(layout, device)
    start = buffer.data_ptr()
    places = tables.upload(tuple(start + offset for offset in layout.byte_offsets[:-1]), torch.int64, device)
    for index, tiles in static.tiles.items():
        launch(
            snapshot_kernel,
            len(tiles),
            device,
            _addresses(weights),
            static.layers,
            tiles,
            places,
            selected.view(torch.uint8),
            int(restore),
            DTYPE=BITS[index],
        )


def asynchronous_sgd_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    filter_dims: Sequence[int],
    selected: Tensor,
    lr: Tensor,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    first_steps: Sequence[bool],
) -> None:
    """In place."""
    device = params[0].device
    buffers = momentum_buffers or params  # without momentum they are not touched
    dims, groups = [max(dim, 0) for dim in filter_dims], [0] * len(params)
    layouts = tuple(layout_of(tensors, dims, groups) for tensors in (params, grads, buffers))
    static = _sgd_tables(layouts, tuple(dim >= 0 for dim in filter_dims), device)
    tables.keep_for_graph(static, device)
    for index, tiles in static.tiles:
        launch(
            sgd_kernel,
            len(tiles),
            device,
            _addresses(params),
            _addresses(grads),
            _addresses(buffers),
            static.layouts,
            tiles,
            tables.upload(tuple(map(int, first_steps)), torch.int32, device),
            selected.view(torch.uint8),
            tables.upload((weight_decay, momentum, 1 - dampening), torch.float64, device),
            lr,
            int(weight_decay != 0),
            int(momentum != 0),
            int(nesterov),
            int(maximize),
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
    tables.refuse_capture(device)
    rows, first_filter = [], 0
    for layers, is_masked in zip(zip(*(layout.layers for layout in layouts), strict=True), masked, strict=True):
        layer = layers[0]
        row = layer.channels * layer.kernel
        total = layer.filters * row
        if total > MAX_ELEMENTS:
            raise ValueError(f"a parameter has {total} elements, more than the {MAX_ELEMENTS} of one launch")
        alike = all(other[:10] == layer[:10] for other in layers)
        reach = 1 + sum((n - 1) * step for n, step in zip(layer[:5], layer[5:10], strict=True))
        run = layer.filter_stride if layer.filters > 1 else row
        head = (total, run, layer.filters, int(alike and reach == total), first_filter if is_masked else -1)
        rows.append((*head, *layers[0], *layers[1], *layers[2]))
        first_filter += layer.filters if is_masked else 0
    tiles = []
    for index in range(len(DTYPES)):
        own = [i for i, layer in enumerate(layouts[0].layers) if layer.dtype == index]
        blocks = [-(-rows[i][0] // sgd.BLOCK) for i in own]
        if own:
            tiles.append((index, tables._tiles(own, blocks, [1] * len(own)).to(device)))
    return _SgdTables(torch.tensor(rows, dtype=torch.int64, device="cpu").to(device), tuple(tiles))


def _addresses(tensors: Sequence[Tensor]) -> Tensor:
    """int64 [L] on the device."""
    return tables.upload(tuple(map(methodcaller("data_ptr"), tensors)), torch.int64, tensors[0].device)
