"""What is said where a library is not installed."""

from __future__ import annotations

from ..extras import install


def needs(library: str, extra: str) -> ImportError:
    """The error of a module that cannot do without a library, which names the extra that brings it."""
    return ImportError(
        f"weight_evolution.integrations.{extra} needs {library}, which is not installed or does not import here: "
        f"{install(extra)}"
    )
