"""`UnitSpan`: where the units of a layer are in a tensor, and what reshaping and reducing it does to that."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace


class NotUnderstoodError(Exception):
    """What happens to a unit's output is not understood; the message says what it meets."""


NEEDS_SHAPES = "which needs shapes: pass example_inputs"


@dataclass(frozen=True)
class UnitSpan:
    """Unit u is at ``offset + u * block`` to ``offset + (u + 1) * block`` along one dimension of a tensor."""

    axis: int
    """From the end: -1 is the last dimension."""
    offset: int
    block: int
    size: int
    """Of this dimension."""
    dims: int | None
    """Of the tensor, None where that is not known."""
    open: bool = False
    """The dimension was flattened together with an unknown number of positions, by which all three are multiplied."""

    def times(self, factor: int) -> UnitSpan:
        """Every element became so many."""
        return replace(self, offset=self.offset * factor, block=self.block * factor, size=self.size * factor)

    def closed(self, size: int, reader: str) -> UnitSpan:
        """For a reader that says how large the dimension is.

        Raises:
            NotUnderstoodError: the units do not fill it evenly.
        """
        if size == self.size and not self.open:
            return self
        if not self.open or size % self.size:
            raise NotUnderstoodError(f"{reader} reads {size} features, which are not {self.size} in equal blocks")
        return replace(self.times(size // self.size), open=False)

    def at(self, axis: int, reader: str) -> UnitSpan:
        """For a reader of this dimension.

        Raises:
            NotUnderstoodError: the units are along another one.
        """
        if axis != self.axis:
            raise NotUnderstoodError(f"{reader} reads dimension {axis} of its input, the units are in {self.axis}")
        return self

    def reduced(self, dims: Sequence[int], keep: bool, reader: str) -> UnitSpan:
        """Behind a reduction over these dimensions."""
        reduced = {self._from_end(dim, reader) for dim in dims}
        if not dims or self.axis in reduced:
            raise NotUnderstoodError(f"it meets others in {reader}, which reduces over the units")
        if keep:
            return self
        left = None if self.dims is None else self.dims - len(reduced)
        return replace(self, axis=self.axis + sum(dim > self.axis for dim in reduced), dims=left)

    def flattened(self, start: int, end: int, reader: str) -> UnitSpan:
        """Behind the flattening of these dimensions, by an unknown number of positions."""
        if self.dims is None:  # of a Linear without shapes: the reader's features tell whether anything changed
            if (start, end, self.axis) != (1, -1, -1):
                raise NotUnderstoodError(f"it goes to {reader}, {NEEDS_SHAPES}")
            return replace(self, dims=2)
        first, last = (dim % self.dims for dim in (start, end))
        place = self.dims + self.axis
        if first < place <= last:
            raise NotUnderstoodError(f"{reader} flattens it with the dimensions before the units")
        left = self.dims - (last - first)
        if last < place:
            place -= last - first
        return replace(self, axis=place - left, dims=left, open=self.open or first == place < last)

    def reshaped(self, before: Sequence[int], after: Sequence[int], reader: str) -> UnitSpan:
        """Behind any change from one shape to another that keeps the order of the elements."""
        place = len(before) + self.axis
        ahead = math.prod(before[:place])
        for target in reversed(range(len(after))):
            factor, rest = divmod(after[target], before[place])
            if factor and not rest and math.prod(after[:target]) == ahead:
                return replace(self.times(factor), axis=target - len(after), dims=len(after))
        raise NotUnderstoodError(f"{reader} makes {list(after)} of {list(before)}, where a unit is in no block")

    def is_at(self, dim: int, reader: str) -> bool:
        """Whether a dimension, given from the start or the end, is the one of the units."""
        return self._from_end(dim, reader) == self.axis

    def _from_end(self, dim: int, reader: str) -> int:
        if dim < 0:
            return dim
        if self.dims is None:
            raise NotUnderstoodError(f"it goes to {reader}, {NEEDS_SHAPES}")
        return dim - self.dims
