"""What is available, as a test wants it."""

from we_kernels.operator import OPERATORS
from we_kernels.runtime import backends


def pretend(monkeypatch, unavailable):
    """``unavailable(name, device_type)`` tells instead of the package, and all operators choose anew."""
    monkeypatch.setattr(backends, "unavailable", unavailable)
    for operator in OPERATORS.values():
        monkeypatch.setattr(operator, "_chosen", {})
