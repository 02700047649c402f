"""What all reports can do: one line, plain numbers, a short text and a long one."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .tables import table

SHOWN = 5
"""Layers in a printed report: those with the most to say."""


class Rows(NamedTuple):
    """A table of layers."""

    head: Sequence[str]
    cells: Sequence[Sequence[str]]
    weights: Sequence[float]
    """Of each row, how much there is to say about it; 0: nothing."""

    def lines(self, *last: Sequence[str]) -> list[str]:
        """All of it, with further rows at the end."""
        return table([self.head, *self.cells, *last])

    def short(self, most: int = SHOWN) -> list[str]:
        """The rows that weigh most, in their order, and how many others there are; nothing where no row does."""
        heavy = sorted((i for i, weight in enumerate(self.weights) if weight > 0), key=lambda i: -self.weights[i])
        shown = sorted(heavy[:most])
        if not shown:
            return []
        others = len(self.cells) - len(shown)
        more = [f"... and {others} more; table() has all"] if others else []
        return [*table([self.head, *(self.cells[i] for i in shown)]), *more]


class Report(ABC):
    """Of a method or a measurement; ``print(report)`` is short, ``report.table()`` has every layer."""

    @abstractmethod
    def summary(self) -> str:
        """One line."""

    @abstractmethod
    def scalars(self) -> dict[str, float]:
        """Totals by name, finite numbers only, for any logger."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """All of it as plain numbers, strings, lists and dicts, as JSON has them; None for what is not finite."""

    @abstractmethod
    def table(self) -> str:
        """Every layer, as text."""

    @abstractmethod
    def _rows(self) -> Rows:
        """The table of layers."""

    @property
    @abstractmethod
    def _size(self) -> int:
        """How many layers or parameters it is about."""

    def __str__(self) -> str:
        return "\n".join([self.summary(), *self._rows().short()])

    def __repr__(self) -> str:
        # Never waits for a device and never raises what is pending, as the text would.
        return f"<{type(self).__name__} of {self._size} layers>"


def finite(scalars: Mapping[str, float]) -> dict[str, float]:
    """Those that are."""
    return {name: value for name, value in scalars.items() if math.isfinite(value)}


def plain_dict(entries: Mapping[Any, Any]) -> dict[str, Any]:
    """`plain` of each entry, by its key as a string."""
    return {str(key): plain(entry) for key, entry in entries.items()}


def plain(value: Any) -> Any:
    """Plain numbers, strings, lists and dicts with string keys; None for floats that are not finite."""
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return plain_dict(value)
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
