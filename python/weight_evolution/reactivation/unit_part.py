"""`UnitPart`: the rows of one tensor that a rank has, in a step on DTensors."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from we_kernels.reactivation.draw import drawn_values, scales

from .network_units import Item

_MEANS = ("mean", "mean or one")
SUMS = 4
"""float64 numbers of `UnitPart.sums`."""


class UnitPart:
    """What `we_kernels.reactivate_` does to a tensor, to some rows of it: its values are those of the whole tensor.

    Reads the tensor when made and by `sums`; only `write_` writes.

    Args:
        item: the tensor.
        revived: bool [U], of all units, on the tensor's device.
    """

    def __init__(self, item: Item, revived: Tensor) -> None:
        self._item, self._held, self._revived = item, item.held, revived
        d0, d1, *kernel = (*item.shape, 1)[: max(2, len(item.shape))]
        self._size, self._kernel = (d0, d1), kernel
        self._rows = self._columns = None
        own, device = item.own, revived.device
        if own.rows is not None:
            self._rows = own.rows[self._held.range].to(device).view(-1, 1).expand(-1, d1)
        if own.columns is not None:
            group = torch.arange(d0, device="cpu")[self._held.range] // (d0 // own.groups)
            of_groups = own.columns.view(own.groups, d1).to(device)
            self._columns = of_groups[group.to(device)] if own.groups > 1 else of_groups.expand(len(group), d1)
        self._drawn: tuple[Tensor, Tensor, Tensor, Tensor, Tensor] | None = None

    @property
    def is_whole(self) -> bool:
        """Whether this rank has all rows, so that all ranks have."""
        return self._held.number == self._item.shape[0]

    def sums(self, *, scaled: bool) -> Tensor:
        """float64 [4], of this rank's rows.

        Of a tensor that gets a mean: of finite elements that are not written number and sum, and of all finite ones. Of
        one that is drawn, if ``scaled``, the sum of the magnitudes of units that are not revived, and zeros.
        """
        x = self._item.own.tensor
        if "draw" in self._item.values:
            units = self._drawn_units
            alive = (units >= 0) & ~self._hit(units)
            total = torch.where(self._like(alive), x, 0).abs().sum(dtype=torch.float64) * scaled
            return torch.stack([total, *[torch.zeros_like(total)] * 3])
        finite = x.isfinite()
        others = finite & ~self._like(self._written())
        numbers = (of(mask) for mask in (others, finite) for of in (torch.sum, self._sum_of))
        return torch.stack([number.double() for number in numbers])

    def draw(self, number: int, seed: int, step: int) -> None:
        """Draw fresh weights of this rank's rows, as the tensor of that number among those that are drawn."""
        units = self._drawn_units
        rows, columns = self._hit(units).nonzero(as_tuple=True)
        d1, kernel = self._size[1], math.prod(self._kernel)
        first = ((self._held.first + rows) * d1 + columns) * kernel
        element = first.view(-1, 1) + torch.arange(kernel, device=first.device)
        at = torch.full((1,), step, dtype=torch.int64, device=first.device)
        fresh, magnitudes = drawn_values(element, number, self._bound, seed, at)
        of_elements = units[rows, columns]
        sums = torch.zeros(len(self._revived), dtype=torch.int64, device=first.device)
        sums.index_add_(0, of_elements, magnitudes.sum(1))
        self._drawn = rows, columns, of_elements, fresh, sums

    def write_(self, into: Tensor, totals: Tensor, norms: Tensor | None) -> None:
        """Write to the rows of this rank, or to a copy of them.

        Args:
            into: like this rank's part of the tensor.
            totals: float64 [4], `sums` of all ranks.
            norms: float32 [U], the L1 norm of each unit that is drawn; None: the mean of the tensor's other units, if
                ``totals`` has it, else as drawn.
        """
        row_value, column_value = self._item.values
        axes = [(column_value, self._columns), (row_value, self._rows)]
        # Where both meet, 0 goes before all, then the row's value before the column's.
        for value, units in sorted(axes, key=lambda axis: axis[0] == "zero"):
            if value == "draw":
                self._write_drawn_(into, totals[0], norms)
            elif value != "keep" and units is not None:
                into.masked_fill_(self._like(self._hit(units)), self._constant(value, totals).to(into))

    @property
    def _drawn_units(self) -> Tensor:
        """[rows here, D1]: the unit of each element's row or column, whichever is drawn."""
        units = self._rows if self._item.own.row_value == "draw" else self._columns
        assert units is not None
        return units

    @property
    def _bound(self) -> float:
        return 1 / math.sqrt(self._size[1] * math.prod(self._kernel))

    def _write_drawn_(self, into: Tensor, total: Tensor, norms: Tensor | None) -> None:
        assert self._drawn is not None
        rows, columns, units, fresh, sums = self._drawn
        target = (total / self._living).expand(len(sums)) if norms is None else norms.double()
        values = fresh * scales(target, sums, self._bound)[units].view(-1, 1)
        into[rows, columns] = values.to(into.dtype).view(-1, *into.shape[2:])

    @property
    def _living(self) -> Tensor:
        """How many rows or columns on all ranks have a unit that is not revived."""
        own = self._item.own
        units = own.rows if own.row_value == "draw" else own.columns
        assert units is not None
        units = units.to(self._revived.device)
        return ((units >= 0) & ~self._hit(units)).sum()

    def _hit(self, units: Tensor) -> Tensor:
        """Whether each of these units is revived; -1 is none."""
        return (units >= 0) & self._revived[units.clamp(min=0)]

    def _written(self) -> Tensor:
        """bool [rows here, D1]."""
        return torch.stack(list(self._hits())).any(0)

    def _hits(self) -> Iterator[Tensor]:
        for value, units in zip(self._item.values, (self._rows, self._columns), strict=True):
            if value != "keep" and units is not None:
                yield self._hit(units)

    def _like(self, mask: Tensor) -> Tensor:
        """[rows here, D1] as the tensor has its elements."""
        dim = len(self._item.shape)
        return mask.reshape(mask.shape + (1,) * (dim - 2)) if dim > 1 else mask.reshape(-1)

    def _sum_of(self, mask: Tensor) -> Tensor:
        return torch.where(mask, self._item.own.tensor, 0).sum(dtype=torch.float64)

    def _constant(self, value: str, totals: Tensor) -> Tensor:
        """[]: what all elements become."""
        if value == "given":
            return torch.as_tensor(self._item.given, dtype=torch.float32, device=totals.device).reshape(())
        if value not in _MEANS:
            return totals.new_full((), float(value == "one"))
        others, sum_of_others, finite, sum_of_finite = totals.unbind()
        if value == "mean":
            alone = others == 0
            others, sum_of_others = others.where(~alone, finite), sum_of_others.where(~alone, sum_of_finite)
        return torch.where(others > 0, sum_of_others / others.clamp(min=1), float(value == "mean or one"))


def has_any(item: Item, revived: Tensor) -> bool:
    """Whether a step writes to the tensor, on any rank.

    Args:
        revived: bool [U], of all units, on the CPU.
    """
    tables = zip(item.values, (item.own.rows, item.own.columns), strict=True)
    return any(
        value != "keep" and units is not None and bool(((units >= 0) & revived[units.clamp(min=0)]).any())
        for value, units in tables
    )


def needs_sums(item: Item, *, scaled: bool) -> bool:
    """Whether what is written depends on `UnitPart.sums`."""
    return any(value in _MEANS or (scaled and value == "draw") for value in item.values)
