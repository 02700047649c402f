"""Counts of bins, and blends of networks, as launches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...layout import Layout
from ...transfer import Place, upload
from . import blend, tables
from .bins import BIN_COUNTS, CHUNK, LOWEST, MAX_REGISTERS, bins_kernel, filter_bins_kernel, range_kernel
from .fields import TRITON_DTYPES
from .launch import launch


def count_bins(weights: Sequence[Tensor], layout: Layout, bins: int, per_filter: bool) -> Tensor:
    """int64 [F, bins] or [L, bins]."""
    place = Place.current(weights[0].device)
    device = place.device
    addresses = upload(tuple(map(Tensor.data_ptr, weights)), torch.int64, place)
    static = tables.layer_tables(layout, place)
    size = min(count for count in BIN_COUNTS if count > bins)
    if per_filter:
        counts = torch.empty((layout.num_filters, bins), dtype=torch.int64, device=device)
        for index in static.tiles:
            launch(
                filter_bins_kernel,
                layout.num_filters,
                device,
                addresses,
                static.layers,
                static.layer_of_filter,
                counts,
                bins,
                maxnreg=MAX_REGISTERS,
                DTYPE=TRITON_DTYPES[index],
                INDEX=index,
                BINS=size,
            )
        return counts
    counts = torch.zeros((len(weights), bins), dtype=torch.int64, device=device)
    ranges = torch.full((len(weights), 2), LOWEST, dtype=torch.int64, device=device)
    for index, chunks in tables.chunks(layout, CHUNK, place).items():
        shared = (len(chunks), device, addresses, static.layers, chunks, ranges)
        constants = {"maxnreg": MAX_REGISTERS, "DTYPE": TRITON_DTYPES[index], "SIZE": CHUNK}
        launch(range_kernel, *shared, **constants)
        launch(bins_kernel, *shared, counts, bins, BINS=size, **constants)
    return counts


def blend_(
    networks: Sequence[Sequence[Tensor]], layouts: Sequence[Layout], coefficients: Tensor, per_filter: bool
) -> None:
    """In place; ``coefficients`` is float32 [networks written, F or L]."""
    place = Place.current(coefficients.device)
    pointers = tuple(weight.data_ptr() for network in networks for weight in network)
    addresses = upload(pointers, torch.int64, place)
    layer_tables = [tables.layer_tables(layout, place).layers for layout in layouts]
    alike = all(layout is layouts[0] for layout in layouts)
    layers = layer_tables[0] if alike else torch.stack(layer_tables)
    runs = upload(tables.common_runs(layouts, per_filter), torch.int32, place)
    for index, chunks in tables.chunks(layouts[0], blend.BLEND_TILE, place).items():
        launch(
            blend.blend_kernel,
            len(chunks),
            place.device,
            addresses,
            layers,
            0 if alike else layer_tables[0].numel(),
            len(layouts[0].layers),
            chunks,
            runs,
            coefficients,
            coefficients.shape[1],
            len(networks),
            len(coefficients),
            DTYPE=TRITON_DTYPES[index],
            PER_FILTER=per_filter,
            SIZE=blend.BLEND_TILE,
            maxnreg=blend.MAX_REGISTERS,
        )
