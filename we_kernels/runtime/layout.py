"""How weight tensors are seen as filters: sizes and strides, nothing of the values.

A filter is one output channel's slice of a weight; it has ``channels`` kernels (one per input channel) of
``kernel`` elements each. Every backend works from the `Layout` made here, so that none of them has to know
about memory formats, transposed convolutions or the number of spatial dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from itertools import accumulate, repeat
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .transfer import Owner, Place, table_of, table_to_device

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
"""Supported weight dtypes; a layer's ``dtype`` is the index here (csrc/layout.h has the same list)."""

MAX_DIMS = 5

ALIGNMENT = 64
"""Bytes."""


class Layer(NamedTuple):
    """One weight tensor as N filters of C kernels. Strides are in elements; the field order is csrc/layout.h's."""

    filters: int
    """N."""
    channels: int
    """C, kernels per filter: in_channels / groups of a convolution, 1 for a vector."""
    kernel0: int
    kernel1: int
    kernel2: int
    """Kernel sizes, outermost first; dimensions that lie row-major in memory are merged into kernel2."""
    filter_stride: int
    channel_stride: int
    stride0: int
    stride1: int
    stride2: int
    dtype: int
    """Index into `DTYPES`."""
    blend: int
    """1: whole filters are blended (kernel height 1, rows, vectors). 0: element crossover."""
    group: int
    first_filter: int
    """Position of this layer's first filter in the bank's list of F filters."""

    @property
    def kernel(self) -> int:
        """Elements of one kernel."""
        return self.kernel0 * self.kernel1 * self.kernel2


class Segments:
    """The bank's F filters as L consecutive runs (layers), each belonging to one of G groups.

    In an operator's schema it is ``int[] sizes, int[] groups``.
    """

    _fields = ("sizes", "groups")

    def __init__(self, sizes: tuple[int, ...], groups: tuple[int, ...]) -> None:
        self.sizes = sizes
        self.groups = groups
        self.starts = (0, *accumulate(sizes))[: len(sizes)]
        self.num_filters = sum(sizes)
        self.num_layers = len(sizes)
        self.num_groups = max(groups, default=0) + 1
        self.tables: dict[tuple[object, ...], Any] = {}
        """On devices, by name and device: copies of what is here, and what kernels need to know of it."""

    @classmethod
    def _make(cls, fields: Iterable[Sequence[int]]) -> Segments:
        return segments_of(*map(tuple, fields))

    def fields(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """As in an operator's schema."""
        return self.sizes, self.groups

    @cached_property
    def table(self) -> Tensor:
        """int64 [L, 3] on the CPU: filters, first filter, group of every layer."""
        rows = list(zip(self.sizes, self.starts, self.groups, strict=True))
        return torch.tensor(rows, dtype=torch.int64, device="cpu").reshape(-1, 3)

    def table_on(self, device: torch.device) -> Tensor:
        """`table` on ``device``, copied once."""
        return _copy_on(self, "table", self.table, device)

    def layer_of_filter(self, device: torch.device) -> Tensor:
        """int64 [F]: the layer of each filter."""
        return _copy_on(self, "layer_of_filter", self._layer_of_filter, device)

    @cached_property
    def _layer_of_filter(self) -> Tensor:
        return torch.arange(self.num_layers, device="cpu").repeat_interleave(self.table[:, 0])


class Layout:
    """The layers of a bank, and the same as a table for the kernels."""

    def __init__(self, layers: tuple[Layer, ...], filter_dims: tuple[int, ...]) -> None:
        self.layers = layers
        self.filter_dims = filter_dims
        self.segments = segments_of(tuple(x.filters for x in layers), tuple(x.group for x in layers))
        self.num_filters = self.segments.num_filters
        self.tables: dict[tuple[object, ...], Any] = {}
        """On devices, by name and device: copies of what is here, and what kernels need to know of it."""

    @cached_property
    def table(self) -> Tensor:
        """int64 [L, 14] on the CPU: the fields of `Layer`, in order."""
        return torch.tensor(self.layers, dtype=torch.int64, device="cpu").reshape(-1, len(Layer._fields))

    def table_on(self, device: torch.device) -> Tensor:
        """`table` on ``device``, copied once."""
        return _copy_on(self, "table", self.table, device)

    def elements_on(self, device: torch.device, per_filter: bool) -> Tensor:
        """float64 [F] or [L] on ``device``: the elements of every filter or of every tensor, 1 for an empty one."""
        source = self._elements_of_filters if per_filter else self._elements_of_tensors
        return _copy_on(self, f"elements {per_filter}", source, device)

    @cached_property
    def _elements_of_tensors(self) -> Tensor:
        return self.table[:, :5].prod(1).clamp(min=1).double()  # filters, channels and the three kernel sizes

    @cached_property
    def _elements_of_filters(self) -> Tensor:
        return self.table[:, 1:5].prod(1).double()[self.segments.layer_of_filter(torch.device("cpu"))]

    def channels_on(self, device: torch.device) -> Tensor:
        """float64 [F] on ``device``: the number of kernels of every filter."""
        return _copy_on(self, "channels", self._channels_of_filters, device)

    @cached_property
    def _channels_of_filters(self) -> Tensor:
        return self.table[:, 1].double()[self.segments.layer_of_filter(torch.device("cpu"))]

    @cached_property
    def dtypes(self) -> tuple[int, ...]:
        """Indices in `DTYPES` of those that have filters."""
        return tuple(sorted({layer.dtype for layer in self.layers if layer.filters}))

    @cached_property
    def extents(self) -> tuple[int, ...]:
        """Bytes from the first to the end of the last element of every tensor, gaps included; 0 for an empty one."""
        return tuple(_extent(layer) * DTYPES[layer.dtype].itemsize for layer in self.layers)

    @cached_property
    def byte_offsets(self) -> tuple[int, ...]:
        """Where each layer starts in a flat buffer that holds all of them; and that buffer's size."""
        sizes = [aligned(x.filters * x.channels * x.kernel * DTYPES[x.dtype].itemsize) for x in self.layers]
        return (0, *accumulate(sizes))


def _extent(layer: Layer) -> int:
    sizes, strides = layer[:5], layer[5:10]
    return 1 + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True)) if layer.filters else 0


def aligned(size: int) -> int:
    """``size`` bytes rounded up to whole units of `ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def _copy_on(owner: Owner, name: str, source: Tensor, device: torch.device) -> Tensor:
    return table_of(owner, name, Place.current(device), lambda: table_to_device(source, device))


Forms = tuple[tuple[torch.Size, ...], tuple[tuple[int, ...], ...], tuple[torch.dtype, ...]]
"""Shapes, strides and dtypes of tensors: all that a layout depends on, besides filter dimensions and groups."""


def forms_of(weights: Sequence[Tensor]) -> Forms:
    """In one pass each in C: this runs at every call."""
    return (
        tuple(map(attrgetter("shape"), weights)),
        tuple(map(Tensor.stride, weights)),
        tuple(map(attrgetter("dtype"), weights)),
    )


@lru_cache(maxsize=256)
def segments_of(sizes: tuple[int, ...], groups: tuple[int, ...]) -> Segments:
    """The (cached) `Segments` of layers with these numbers of filters."""
    return Segments(sizes, groups)


@lru_cache(maxsize=256)
def layout_of(forms: Forms, filter_dims: tuple[int, ...], groups: tuple[int, ...] = ()) -> Layout:
    """The (cached) layout of tensors of these forms; without ``groups`` all are in group 0."""
    layers: list[Layer] = []
    first_filter = 0
    shapes, strides, dtypes = forms
    own_groups = groups or repeat(0, len(filter_dims))
    for shape, stride, dtype, dim, group in zip(shapes, strides, dtypes, filter_dims, own_groups, strict=True):
        layers.append(_layer(shape, stride, dtype, dim, group, first_filter))
        first_filter += layers[-1].filters
    return Layout(tuple(layers), filter_dims)


def _layer(
    shape: torch.Size, stride: tuple[int, ...], dtype: torch.dtype, dim: int, group: int, first_filter: int
) -> Layer:
    # A dimension of size 1 is never stepped along; zero keeps odd strides of such dimensions out of the kernels.
    dims = [(size, step if size > 1 else 0) for size, step in zip(shape, stride, strict=True)]
    filters, filter_stride = dims.pop(dim)
    channels, channel_stride = dims.pop(0) if dims else (1, 0)
    # The height of a 1-d kernel is its length, as in the released program (weight.size(2)).
    height = 1 if not dims else dims[max(len(dims) - 2, 0)][0]
    sizes, steps = zip(*_merge_row_major(dims), strict=True)
    return Layer._make(
        (filters, channels, *sizes, filter_stride, channel_stride, *steps, DTYPES.index(dtype), int(height == 1), group)
        + (first_filter,)
    )


def _merge_row_major(dims: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Three (size, stride) pairs that visit the same addresses in the same order, as few of them as possible."""
    merged: list[tuple[int, int]] = []
    for size, step in reversed(dims):
        if size == 1:
            continue
        if merged and step == merged[0][0] * merged[0][1]:
            merged[0] = (merged[0][0] * size, merged[0][1])
        else:
            merged.insert(0, (size, step))
    return [(1, 0)] * (3 - len(merged)) + merged
