"""Device tables of layouts: copied once per device, read by the kernels of several operators."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..layout import Layer, Layout
from ..transfer import Place, table_of, table_to_device
from .fields import EXTRA_FIELDS
from .rows import kind_of, rows_per_program


def layers(layout: Layout, place: Place) -> Tensor:
    """int64 [L, 17]: the fields of `Layer`, then `EXTRA_FIELDS`."""

    def make() -> Tensor:
        extra = torch.tensor(list(map(_extra, layout.layers)), dtype=torch.int64, device="cpu")
        return table_to_device(torch.cat([layout.table, extra.reshape(-1, len(EXTRA_FIELDS))], dim=1), place.device)

    return table_of(layout, "layers of triton", place, make)


def layer_of_filter(layout: Layout, place: Place) -> Tensor:
    """int32 [F]."""
    return table_of(
        layout,
        "layer of filter",
        place,
        lambda: table_to_device(layout.segments.layer_of_filter(torch.device("cpu")).int(), place.device),
    )


def row_tiles(layout: Layout, place: Place) -> dict[int, Tensor]:
    """For each dtype in the bank (its index in `DTYPES`): int64 [T, 8], `TILE_FIELDS` of each tile of filters, those
    with long rows first."""

    def make() -> dict[int, Tensor]:
        by_row = sorted(enumerate(layout.layers), key=lambda numbered: -_extra(numbered[1])[0])
        return {
            dtype: table_to_device(
                _row_tiles([(i, layer) for i, layer in by_row if layer.dtype == dtype]), place.device
            )
            for dtype in layout.dtypes
        }

    return table_of(layout, "row tiles", place, make)


def chunks(layout: Layout, size: int, place: Place) -> dict[int, Tensor]:
    """For each dtype in the bank: int32 [T, 2], layer and number of every run of ``size`` elements of every tensor."""

    def make() -> dict[int, Tensor]:
        found = {}
        for dtype in layout.dtypes:
            part = [(i, layer) for i, layer in enumerate(layout.layers) if layer.dtype == dtype and layer.filters]
            counts = [-(-layer.filters * layer.channels * layer.kernel // size) for _, layer in part]
            found[dtype] = table_to_device(tiles([i for i, _ in part], counts, 1), place.device)
        return found

    return table_of(layout, f"chunks of {size}", place, make)


def tiles(owners: Iterable[int], sizes: Sequence[int], rows: int | Sequence[int]) -> Tensor:
    """int32 [T, 2]: (owner, first row) of every run of ``rows`` filters (for all or for each) of every owner."""
    step = torch.tensor([rows] * len(sizes) if isinstance(rows, int) else rows, dtype=torch.int64, device="cpu")
    count = (torch.tensor(sizes, dtype=torch.int64, device="cpu") + step - 1) // step
    owner = torch.tensor(list(owners), dtype=torch.int64, device="cpu").repeat_interleave(count)
    tile_in_owner = torch.arange(len(owner), device="cpu") - (count.cumsum(0) - count).repeat_interleave(count)
    return torch.stack([owner, tile_in_owner * step.repeat_interleave(count)], dim=1).int().contiguous()


def is_run(layer: Layer) -> bool:
    """Whether the elements of the whole tensor fill one run of memory, in any order."""
    return _fill_run(layer[:5], layer[5:10])


def _extra(layer: Layer) -> tuple[int, bool, bool]:
    """`EXTRA_FIELDS`."""
    return layer.channels * layer.kernel, _fill_run(layer[1:5], layer[6:10]), is_run(layer)


def _row_tiles(numbered: Sequence[tuple[int, Layer]]) -> Tensor:
    """int64 [T, 8]: `TILE_FIELDS`."""
    kinds = [kind_of(*_extra(layer)[:2]) for _, layer in numbered]
    runs = tiles(range(len(kinds)), [layer.filters for _, layer in numbered], list(map(rows_per_program, kinds)))
    of_layers = [
        (i, layer.filters, layer.channels * layer.kernel, layer.filter_stride, layer.first_filter, layer.channels, kind)
        for (i, layer), kind in zip(numbered, kinds, strict=True)
    ]
    of_tiles = torch.tensor(of_layers, dtype=torch.int64, device="cpu")[runs[:, 0].long()]
    return torch.cat([of_tiles[:, :1], runs[:, 1:].long(), of_tiles[:, 1:]], dim=1).contiguous()


def _fill_run(sizes: Sequence[int], steps: Sequence[int]) -> bool:
    reach = 1
    for step, size in sorted(zip(steps, sizes, strict=True)):
        if size > 1:
            if step != reach:
                return False
            reach *= size
    return True
