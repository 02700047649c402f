"""A rank that fails on its own still takes part in the collectives of the others, until all can be told."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


class Attempts:
    """Computations of one rank between collectives; after one has failed, the others are left out."""

    def __init__(self) -> None:
        self._failure: Exception | None = None

    def __call__(self, compute: Callable[[], Result], otherwise: Callable[[], Result]) -> Result:
        """``compute()``, or what stands for it once an attempt has failed, so that collectives have their sizes."""
        if self._failure is None:
            try:
                return compute()
            except Exception as error:
                self._failure = error
        return otherwise()

    def check(self) -> None:
        """Raises what the attempt that failed has raised."""
        if self._failure is not None:
            raise self._failure
