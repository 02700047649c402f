"""A reactivation as two values: the tensors with their places of units, and how weights are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from ..runtime.layout import Layout, forms_of, layout_of

KEEP, ZERO, ONE, DRAW, MEAN, MEAN_OR_ONE, GIVEN = range(7)
"""What is written to an element (csrc/cpu/reactivation.h has the same list)."""


class UnitArguments(NamedTuple):
    """Per tensor, which is seen as [D0, D1, K]: its first two dimensions, and the rest (1 where there is none).

    Row r is index r of the first dimension; column c of group g, number ``g * D1 + c``, is index c of the second within
    the g-th of ``groups`` equal parts of the first.
    """

    tensors: Sequence[Tensor]
    units: Tensor
    """int32: the unit of each row or column, -1 for none; D0 or groups * D1 entries from each start."""
    rows: Sequence[int]
    """Where the units of a tensor's rows start in `units`; -1: its rows are of no unit."""
    columns: Sequence[int]
    groups: Sequence[int]
    row_values: Sequence[int]
    """What is written to the rows of a unit. Where a row and a column meet, `ZERO` goes before all, rows before
    columns."""
    column_values: Sequence[int]


class UnitTensors(UnitArguments):
    """The tensors of one call, and how and where they lie during that call; read from them when first asked."""

    @cached_property
    def layout(self) -> Layout:
        """Sizes and strides."""
        return layout_of(forms_of(self.tensors), (0,) * len(self.tensors))

    @cached_property
    def addresses(self) -> tuple[int, ...]:
        """Of the first element of each tensor."""
        return tuple(map(Tensor.data_ptr, self.tensors))

    def known(self, layout: Layout, addresses: tuple[int, ...]) -> UnitTensors:
        """Itself, with what the caller has read already."""
        self.__dict__.update(layout=layout, addresses=addresses)
        return self


class DrawRule(NamedTuple):
    """How `DRAW` draws: uniformly from +- 1/sqrt(D1 * K), then scaled."""

    scaled: bool
    """To the mean L1 norm of the tensor's units that are not revived; False: not at all."""
    targets: Tensor | None
    """float32, like `UnitTensors.units`: the L1 norm of each instead; not scaled where it is not above 0."""
    seed: int
    step: Tensor
    """int64 [1]."""
