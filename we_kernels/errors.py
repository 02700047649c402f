"""Errors that users may want to catch."""


class BackendUnavailableError(RuntimeError):
    """A backend was asked for that cannot run here; the message says why and what to do."""


class NonFiniteWeightError(ValueError):
    """A weight holds NaN or infinity (or its L1 norm overflows float32)."""
