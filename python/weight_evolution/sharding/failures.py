"""The error that a rank gets when another one failed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class ExchangeError(RuntimeError):
    """Another rank failed, died or did not come in time; the weights of this rank are unchanged."""


@contextmanager
def communication() -> Iterator[None]:
    """Around a collective: says what its failure means.

    Raises:
        ExchangeError: the collective failed, or took longer than the group's time-out.
    """
    try:
        yield
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ExchangeError(
            f"a rank of the group did not take part in the step (it ended or hangs, see its own output): {reason}; "
            "nothing was changed on this rank. Restart the job from its last checkpoint"
        ) from error
