"""`FilterBank`: many weight tensors, seen as one list of filters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from .checks import check_integer, is_integer
from .runtime.layout import Forms, Layout, Segments, forms_of, layout_of, segments_of
from .runtime.memory import check_overlap
from .runtime.view import BankView
from .runtime.weights import check_weight

MAX_COUNT = 2**30
"""Filters of a bank, and elements of one kernel: both are counted in 32 bits. Whole tensors may be larger."""


class FilterBank:
    """Many weight tensors, seen as one list of F filters. Holds references to the tensors, no copy.

    The filters are listed tensor by tensor, in the order given. A tensor given twice (tied weights) is listed once;
    `position` maps the tensors as given to the distinct ones. Pointers, shapes and strides are read anew at every
    call, so a parameter whose storage moved (``module.to(...)``, a reload) stays usable; one that was resized or
    freed is refused.

    Args:
        weights: tensors of 1 to 5 dimensions, float32, float64, float16 or bfloat16 (mixed if need be), any
            strides, all on one device. ``[N, C, *kernel]`` for convolutions, ``[N, C]`` for rows of a Linear,
            ``[N]`` for BatchNorm scales or shifts.
        filter_dim: the dimension along which the filters lie, one for all tensors or one each: 0 for convolutions,
            1 for transposed convolutions (their weights are ``[C, N, *kernel]``).
        groups: for each tensor the group 0, 1, ... whose global threshold it shares; all in group 0 when left out.
        names: for each tensor the name that error messages use; ``weights[i]`` when left out.

    Raises:
        TypeError: an entry is not a tensor, or not of a supported dtype, layout or device.
        ValueError: an entry has no elements per filter, overlaps itself or another entry, or is on another device;
            ``filter_dim``, ``groups`` or ``names`` do not fit the tensors.
    """

    weights: tuple[Tensor, ...]
    """The distinct tensors."""
    filter_dims: tuple[int, ...]
    groups: tuple[int, ...]
    names: tuple[str, ...]
    position: tuple[int, ...]
    """For each tensor as given, its position in `weights`."""
    sizes: tuple[int, ...]
    """Number of filters of each distinct tensor."""
    num_filters: int
    """F, the number of filters in all."""

    def __init__(
        self,
        weights: Iterable[Tensor],
        filter_dim: int | Sequence[int] = 0,
        *,
        groups: Sequence[int] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        if isinstance(weights, Tensor):
            raise TypeError("weights must be a list of tensors, got one tensor; write FilterBank([weight])")
        given = list(weights)
        given_names = _per_tensor(names, "names", len(given)) or [f"weights[{i}]" for i in range(len(given))]
        given_groups = _per_tensor(groups, "groups", len(given)) or [0] * len(given)
        if any(not is_integer(group) or group < 0 for group in given_groups):
            raise ValueError(f"groups must be integers from 0, got {given_groups}")
        for weight, name in zip(given, given_names, strict=True):
            check_weight(weight, name)
            if weight.device != given[0].device:
                raise ValueError(
                    f"all weights of a bank must be on one device: {given_names[0]} is on {given[0].device}, "
                    f"{name} on {weight.device}; a threshold cannot span devices, so evolve each device's part on its "
                    "own (a bank, or a WeightEvolution with include=, for each)"
                )
        dims = list(filter_dim) if isinstance(filter_dim, Iterable) else [filter_dim] * len(given)
        if len(dims) != len(given):
            raise ValueError(f"filter_dim must be one integer or one per tensor ({len(given)}), got {len(dims)}")
        dims = [_check_dim(dim, w, name) for dim, w, name in zip(dims, given, given_names, strict=True)]

        self.position, distinct = _distinct(given, dims, given_names)
        self.weights = tuple(given[i] for i in distinct)
        self.filter_dims = tuple(dims[i] for i in distinct)
        self.groups = tuple(int(given_groups[i]) for i in distinct)
        self.names = tuple(given_names[i] for i in distinct)
        self.num_groups = max(self.groups, default=0) + 1
        self.sizes = tuple(weight.shape[dim] for weight, dim in zip(self.weights, self.filter_dims, strict=True))
        self.num_filters = sum(self.sizes)
        self._shapes = tuple(weight.shape for weight in self.weights)
        self._seen: tuple[Forms, tuple[int, ...], torch.device] | None = None
        self._layout: Layout
        if self.num_filters > MAX_COUNT:
            raise ValueError(f"weights have {self.num_filters} filters, more than the {MAX_COUNT} of a bank; make two")
        if not torch.compiler.is_compiling():
            check_overlap(self.weights, self.names)

    def __len__(self) -> int:
        return len(self.weights)

    def __repr__(self) -> str:
        return f"FilterBank({len(self)} tensors, {self.num_filters} filters, {self.num_groups} groups, {self.device})"

    @property
    def device(self) -> torch.device:
        """Where the weights are (cpu for an empty bank)."""
        return self.weights[0].device if self.weights else torch.device("cpu")

    @property
    def blends(self) -> tuple[bool, ...]:
        """For each tensor, whether a crossover blends whole filters: vectors, rows, kernels of height 1."""
        return tuple(bool(layer.blend) for layer in self.view().layout.layers)

    @property
    def segments(self) -> Segments:
        """Where the filters of each tensor are among the F, and the tensors' groups."""
        make = Segments if torch.compiler.is_compiling() else segments_of  # a cache cannot be traced
        return make(self.sizes, self.groups)

    def split(self, per_filter: Tensor) -> tuple[Tensor, ...]:
        """A tensor [F] as one view per distinct tensor."""
        return torch.split(per_filter, list(self.sizes)) if self.weights else ()

    def check(self) -> None:
        """Refuses tensors that changed under the bank.

        Raises:
            TypeError: names the tensor that got a dtype which is not supported.
            ValueError: names the tensor that was resized, freed, moved away from the others or to a misaligned address.
        """
        self.view()

    def view(self) -> BankView:
        """The weights as they are now, for an operator. Raises as `check` does."""
        view = BankView(self.weights, self.filter_dims, self.groups)
        if torch.compiler.is_compiling():
            return view
        seen = forms_of(self.weights), tuple(map(Tensor.data_ptr, self.weights)), self.device
        if seen != self._seen:  # no two devices share addresses
            self._check_all()
            self._layout, self._seen = layout_of(seen[0], self.filter_dims, self.groups), seen
        return view.known(self._layout, seen[1])

    def __getstate__(self) -> dict[str, object]:
        # A copy has other addresses.
        return {**self.__dict__, "_seen": None}

    def _check_all(self) -> None:
        device = self.device
        for weight, shape, name in zip(self.weights, self._shapes, self.names, strict=True):
            if weight.shape != shape:
                raise ValueError(
                    f"{name} was resized from {tuple(shape)} to {tuple(weight.shape)}; make a new FilterBank"
                )
            check_weight(weight, name)
            if weight.device != device:
                raise ValueError(
                    f"{name} is on {weight.device} but {self.names[0]} on {device}; move all of a bank or none"
                )


def _per_tensor(values: Sequence | None, name: str, count: int) -> list:  # type: ignore[type-arg]
    if values is None:
        return []
    if len(values) != count:
        raise ValueError(f"{name} must have one entry per tensor ({count}), got {len(values)}")
    return list(values)


def _check_dim(dim: int, weight: Tensor, name: str) -> int:
    dim = check_integer(dim, f"filter_dim of {name}")
    if not -weight.dim() <= dim < weight.dim():
        raise ValueError(f"filter_dim of {name} must be in [0, {weight.dim() - 1}], got {dim}")
    dim %= weight.dim()
    if weight.shape[dim] > 0 and weight.numel() == 0:
        raise ValueError(f"{name} of shape {tuple(weight.shape)} has filters without elements")
    if not torch.compiler.is_compiling() and weight.numel() > MAX_COUNT:
        kernels = weight.shape[dim] * next((size for i, size in enumerate(weight.shape) if i != dim), 1)
        if weight.numel() // kernels > MAX_COUNT:
            raise ValueError(f"{name} of shape {tuple(weight.shape)} has kernels of more than {MAX_COUNT} elements")
    return dim


def _distinct(weights: list[Tensor], dims: list[int], names: list[str]) -> tuple[tuple[int, ...], list[int]]:
    """Position of each tensor among the distinct ones, and the index of each distinct tensor's first appearance."""
    seen: dict[object, int] = {}
    position: list[int] = []
    distinct: list[int] = []
    for i, weight in enumerate(weights):
        key: object = id(weight)
        if not torch.compiler.is_compiling() and weight.numel():  # data_ptr() cannot be traced
            key = (weight.data_ptr(), weight.dtype, weight.shape, weight.stride())
        if key not in seen:
            seen[key] = len(distinct)
            distinct.append(i)
        elif dims[distinct[seen[key]]] != dims[i]:
            first = names[distinct[seen[key]]]
            raise ValueError(f"{names[i]} is the same tensor as {first}, but with another filter_dim")
        position.append(seen[key])
    return tuple(position), distinct
