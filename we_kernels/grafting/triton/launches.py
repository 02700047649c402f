"""Counts of bins, and blends of networks, as launches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...runtime.layout import Layer, Layout
from ...runtime.transfer import upload
from ...runtime.triton import tables
from ...runtime.triton.launch import launch
from ...runtime.triton.values import TRITON_DTYPES
from ...runtime.view import BankView
from . import blend
from .bins import BIN_COUNTS, CHUNK, LOWEST, MAX_REGISTERS, bins_kernel, filter_bins_kernel, range_kernel


def count_bins(bank: BankView, bins: int, per_filter: bool) -> Tensor:
    """int64 [F, bins] or [L, bins]: elements of every filter or tensor in each bin; -1: one is not finite.

    Two launches and two fills, or one launch per filter; each once more for every further dtype.
    """
    layout, place = bank.layout, bank.place
    layers, size = tables.layers(layout, place), min(count for count in BIN_COUNTS if count > bins)
    if per_filter:
        counts = torch.empty((layout.num_filters, bins), dtype=torch.int64, device=place.device)
        for index in layout.dtypes:
            launch(
                filter_bins_kernel,
                layout.num_filters,
                place,
                bank.addresses_on_device,
                layers,
                tables.layer_of_filter(layout, place),
                counts,
                bins,
                maxnreg=MAX_REGISTERS,
                DTYPE=TRITON_DTYPES[index],
                INDEX=index,
                BINS=size,
            )
        return counts
    counts = torch.zeros((len(bank.weights), bins), dtype=torch.int64, device=place.device)
    ranges = torch.full((len(bank.weights), 2), LOWEST, dtype=torch.int64, device=place.device)
    for index, chunks in tables.chunks(layout, CHUNK, place).items():
        shared = (len(chunks), place, bank.addresses_on_device, layers, chunks, ranges)
        constants = {"maxnreg": MAX_REGISTERS, "DTYPE": TRITON_DTYPES[index], "SIZE": CHUNK}
        launch(range_kernel, *shared, **constants)
        launch(bins_kernel, *shared, counts, bins, BINS=size, **constants)
    return counts


def blend_(networks: Sequence[BankView], coefficients: Tensor, per_filter: bool) -> None:
    """In place, one launch per dtype; ``coefficients`` is float32 [networks written, F or L]."""
    first, place = networks[0].layout, networks[0].place
    layouts = [network.layout for network in networks]
    addresses = upload(tuple(a for network in networks for a in network.addresses), torch.int64, place)
    alike = all(layout is first for layout in layouts)
    layers = tables.layers(first, place)
    for index, chunks in tables.chunks(first, blend.BLEND_TILE, place).items():
        launch(
            blend.blend_kernel,
            len(chunks),
            place,
            addresses,
            layers if alike else torch.stack([tables.layers(layout, place) for layout in layouts]),
            0 if alike else layers.numel(),
            len(first.layers),
            chunks,
            upload(_common_runs(layouts, per_filter), torch.int32, place),
            coefficients,
            coefficients.shape[1],
            len(networks),
            len(coefficients),
            DTYPE=TRITON_DTYPES[index],
            PER_FILTER=per_filter,
            SIZE=blend.BLEND_TILE,
            maxnreg=blend.MAX_REGISTERS,
        )


def _common_runs(layouts: Sequence[Layout], per_filter: bool) -> tuple[int, ...]:
    """For each layer, 1 if in all layouts the tensor's elements lie in one run of memory, in the same order.

    ``per_filter``: and filter after filter.
    """

    def mixes_filters(layer: Layer) -> bool:
        return layer.filters > 1 and layer.filter_stride != layer.channels * layer.kernel

    by_layer = zip(*(layout.layers for layout in layouts), strict=True)
    return tuple(
        int(len(set(layers)) == 1 and tables.is_run(layers[0]) and not (per_filter and mixes_filters(layers[0])))
        for layers in by_layer
    )
