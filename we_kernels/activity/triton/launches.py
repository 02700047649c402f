"""Sums of absolute activations by channel as two launches: parts, and sums of the parts."""

from __future__ import annotations

import torch
from torch import Tensor

from ...runtime.layout import DTYPES
from ...runtime.transfer import Place
from ...runtime.triton.launch import launch
from ...runtime.triton.values import TRITON_DTYPES
from ..geometry import Geometry, with_geometry
from .activity import activity_parts_kernel, activity_sums_kernel

TILES = {True: (64, 32), False: (8, 256)}
"""Columns and positions of a program's tile, where columns lie closer together and where positions do."""
WANTED_PROGRAMS = 1024
"""A few for each of a large GPU's multiprocessors."""
MOST_TILES = 256
"""Of a part: so many float32 numbers are added one after the other."""
MOST_POSITIONS = 2**31 - 2**10
"""They are counted in 32 bits, up to a tile past the end."""
SUMS_BLOCK = 256


def add_channel_activity_(sums: Tensor, activation: Tensor, dim: int, overwrite: bool) -> None:
    """``sums`` [C], float32 or float64, in place."""
    activation, geometry = with_geometry(activation, dim)
    if geometry.positions > MOST_POSITIONS:
        longest = max((other for other in range(activation.dim()) if other != dim), key=lambda d: activation.shape[d])
        for half in activation.tensor_split(2, longest):
            add_channel_activity_(sums, half, dim, overwrite)
            overwrite = False
        return
    place = Place.current(activation.device)
    inner, dtype = geometry.columns_inner, TRITON_DTYPES[DTYPES.index(activation.dtype)]
    columns, positions = TILES[inner]
    blocks = -(-geometry.columns // columns)
    part_size = _part_size(geometry.positions, positions, max(WANTED_PROGRAMS // blocks, 1))
    parts = -(-geometry.positions // part_size)
    part_sums = torch.empty(geometry.columns * parts, dtype=torch.float64, device=activation.device)
    launch(
        activity_parts_kernel,
        blocks * parts,
        place,
        activation,
        part_sums,
        geometry.columns,
        geometry.column_stride,
        geometry.positions,
        part_size,
        parts,
        *geometry.sizes[1:],
        *geometry.strides,
        DTYPE=dtype,
        INNER=inner,
        NEST=_nest(geometry),
        COLUMNS=columns,
        POSITIONS=positions,
    )
    launch(
        activity_sums_kernel,
        geometry.channels,
        place,
        part_sums,
        sums,
        geometry.channels,
        geometry.run,
        geometry.columns // (geometry.run * geometry.channels),
        parts,
        int(overwrite),
        DTYPE=TRITON_DTYPES[DTYPES.index(sums.dtype)],
        BLOCK=SUMS_BLOCK,
    )


def _part_size(positions: int, tile: int, wanted_parts: int) -> int:
    """In whole tiles."""
    tiles = -(-positions // tile)
    return min(-(-tiles // wanted_parts), MOST_TILES) * tile


def _nest(geometry: Geometry) -> int:
    """How many dimensions the kernel is to walk through: 1, 2 or all 4."""
    used = sum(size > 1 for size in geometry.sizes)
    return max(used, 1) if used < 3 else 4
