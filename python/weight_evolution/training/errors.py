"""The error that the command line prints as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from we_kernels import NonFiniteWeightError


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
