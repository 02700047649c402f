"""The error that the command line prints as one line."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from we_kernels import NonFiniteWeightError

from ..extras import install


class UserError(Exception):
    """Something the user can put right: a value, a file, a missing package. The message says what to do."""


@contextmanager
def user_errors(prefix: str = "", *kinds: type[Exception]) -> Iterator[None]:
    """Errors of these kinds (TypeError and ValueError when left out) become a `UserError` that begins with ``prefix``.

    NonFiniteWeightError, which the command line prints, too, stays what it is.
    """
    caught = kinds or (TypeError, ValueError)
    try:
        yield
    except NonFiniteWeightError:
        raise
    except caught as error:
        raise UserError(f"{prefix}{error}") from None


def needed(module: str, what: str, extra: str) -> Any:
    """A module that is imported only where it is used.

    Args:
        module: its name.
        what: needs it, for the error message.
        extra: of this package, that brings it along.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise UserError(f"{what} needs {module.partition('.')[0]}: {install(extra)}") from None
