"""`UnitPlan`: which tensors belong to which units, and what becomes of each when a unit starts anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from ..checks import check_choice, check_integer
from ..runtime.layout import Layout, forms_of, layout_of
from ..runtime.memory import check_overlap
from ..runtime.weights import check_weight
from . import rule

VALUES = ("keep", "zero", "one", "draw", "mean", "mean or one", "given")
"""What can be written, in the order of the numbers in `rule`."""

_MAX_ELEMENTS = 2**31 - 1


@dataclass(frozen=True)
class UnitTensor:
    """One tensor, seen as [D0, D1, K]: K stands for all dimensions after the first two.

    Of a unit can be rows (the output channels of a convolution, say), and columns (input channels; those of the g-th of
    ``groups`` equal parts of the rows are counted from ``g * D1``). Tables of units are best on the CPU: a plan reads
    them once, which waits for a GPU.
    """

    tensor: Tensor
    """Of 1 to 5 dimensions, float32, float64, float16 or bfloat16, any strides."""
    rows: Tensor | None = None
    """Integers [D0]: the unit of each row, -1 for none. None: of no unit."""
    columns: Tensor | None = None
    """Integers [groups * D1]: the unit of each column, -1 for none. None: of no unit."""
    groups: int = 1
    row_value: str = "keep"
    """What the rows of a unit become: one of `VALUES`, see `reactivate_`."""
    column_value: str = "keep"
    name: str = "tensor"
    """In error messages."""


class UnitPlan:
    """The tensors of a network's units, for `reactivate_`. Holds references to the tensors, no copy.

    Args:
        tensors: what belongs to the units; all on one device, none twice.
        units: how many units there are.

    Raises:
        TypeError, ValueError: name the tensor and what is wrong with it.
    """

    def __init__(self, tensors: Sequence[UnitTensor], units: int) -> None:
        self.units = check_integer(units, "units")
        if self.units < 0:
            raise ValueError(f"units must not be negative, got {self.units}")
        self.items = tuple(tensors)
        for item in self.items:
            self._check(item)
        given = [item.tensor for item in self.items]
        if len(set(map(id, given))) != len(given):
            raise ValueError("tensors holds a tensor twice; give each once")
        check_overlap(given, [item.name for item in self.items])
        self._tensors, self._shapes = given, [item.tensor.shape for item in self.items]
        self._seen: object = None
        """What `view` has checked."""
        self._layout: Layout | None = None
        tables = [table for item in self.items for table in (item.rows, item.columns)]
        filled = [table.to("cpu", torch.int32) for table in tables if table is not None]
        ends = [0, *accumulate(map(len, filled))]
        starts = iter(ends)
        places = [-1 if table is None else next(starts) for table in tables]
        self._rows, self._columns = places[::2], places[1::2]
        self._table = torch.cat(filled) if filled else torch.empty(0, dtype=torch.int32, device="cpu")
        self._options = (
            [item.groups for item in self.items],
            [VALUES.index(item.row_value) for item in self.items],
            [VALUES.index(item.column_value) for item in self.items],
        )

    @property
    def device(self) -> torch.device:
        """Where the tensors are (cpu without any)."""
        return self.items[0].tensor.device if self.items else torch.device("cpu")

    @property
    def given(self) -> int:
        """How many tensors have a value that is given at each call."""
        return sum("given" in (item.row_value, item.column_value) for item in self.items)

    @property
    def entries(self) -> int:
        """Rows and columns of all tensors that have units."""
        return len(self._table)

    def start(self, item: int, axis: str) -> int:
        """Where the "rows" or "columns" of a tensor start among the `entries`; -1 if they have no units."""
        return (self._rows if axis == "rows" else self._columns)[item]

    def view(self) -> rule.UnitTensors:
        """The tensors as they are now, for the operator.

        Raises:
            TypeError, ValueError: a tensor was resized, freed, moved or converted.
        """
        if torch.compiler.is_compiling():
            self._check_all()
            return self._arguments()
        forms, addresses = seen = forms_of(self._tensors), tuple(map(Tensor.data_ptr, self._tensors))
        if self._layout is None or seen != self._seen:  # no two devices share addresses
            self._check_all()
            self._layout, self._seen = layout_of(forms, (0,) * len(addresses)), seen
        return self._arguments().known(self._layout, addresses)

    def _arguments(self) -> rule.UnitTensors:
        return rule.UnitTensors(self._tensors, self._table, self._rows, self._columns, *self._options)

    def __getstate__(self) -> dict[str, object]:
        # A copy has other addresses.
        return {**self.__dict__, "_seen": None, "_layout": None}

    def _check_all(self) -> None:
        for item, shape in zip(self.items, self._shapes, strict=True):
            check_weight(item.tensor, item.name)
            if item.tensor.shape != shape:
                raise ValueError(
                    f"{item.name} was resized from {tuple(shape)} to {tuple(item.tensor.shape)}; make a new UnitPlan"
                )
            if item.tensor.device != self.device:
                raise ValueError(
                    f"{item.name} is on {item.tensor.device}, the first on {self.device}; move all or none"
                )
        if self._table.device != self.device:
            self._table = self._table.to(self.device)

    def _check(self, item: UnitTensor) -> None:
        name, tensor = item.name, item.tensor
        check_weight(tensor, name)
        if not tensor.numel():
            raise ValueError(f"{name} has no elements; leave it out")
        if tensor.numel() > _MAX_ELEMENTS:
            raise ValueError(f"{name} has {tensor.numel()} elements, more than {_MAX_ELEMENTS}")
        if tensor.device != self.device:
            raise ValueError(f"{name} is on {tensor.device}, the first tensor on {self.device}; all must be on one")
        rows, columns = (*tensor.shape, 1)[:2]
        if check_integer(item.groups, f"groups of {name}") < 1 or rows % item.groups:
            raise ValueError(f"groups of {name} must divide its {rows} rows, got {item.groups}")
        values = item.row_value, item.column_value
        sizes = rows, item.groups * columns
        for axis, table, size, value in zip(("rows", "columns"), (item.rows, item.columns), sizes, values, strict=True):
            check_choice(value, f"{axis.removesuffix('s')}_value of {name}", VALUES)
            if table is None:
                if value != "keep":
                    raise ValueError(f'{name} has no {axis} of units, so that their value must be "keep"')
                continue
            _check_table(table, f"{axis} of {name}", size, self.units)
        if values == ("draw", "draw"):
            raise ValueError(f'{name} can have "draw" for its rows or its columns, not for both')


def _check_table(table: Tensor, name: str, size: int, units: int) -> None:
    if not isinstance(table, Tensor) or table.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name} must be an int32 or int64 tensor, got {getattr(table, 'dtype', type(table).__name__)}")
    if tuple(table.shape) != (size,):
        raise ValueError(f"{name} must have shape ({size},), got {tuple(table.shape)}")
    low, high = map(int, torch.aminmax(table))
    if low < -1 or high >= units:
        raise ValueError(f"{name} must be from -1 to {units - 1}, got {low} to {high}")
