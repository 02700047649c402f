"""Which implementation runs: ``torch`` (the reference), ``native`` (C++/CUDA) or ``triton``.

CUDA tensors go to triton, or where that is missing to native, CPU tensors to native; what neither can do, to torch.
`use_backend` or the environment variable WE_KERNELS_BACKEND force one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module

from ..errors import BackendUnavailableError

BACKENDS = {"torch": None, "native": "native", "triton": "triton"}
"""Name of a backend -> the module beside this one whose ``unavailable(device_type)`` says why it cannot work on tensors
of such a device, or None; plain PyTorch always can. Importing it needs neither a GPU nor Triton nor the extension."""

PREFERRED = {"cpu": ("native",), "cuda": ("triton", "native")}
"""Type of a device -> its backends, the fastest first (by measurement on an H200); torch comes after them."""

ENVIRONMENT = "WE_KERNELS_BACKEND"

_forced: ContextVar[str | None] = ContextVar("we_kernels_backend", default=None)


@cache
def unavailable(name: str, device_type: str) -> str | None:
    """Why a backend cannot work on tensors of such a device; None when it can."""
    module = BACKENDS[name]
    if module is None:
        return None
    reason: str | None = import_module(f".{module}", __package__).unavailable(device_type)
    return reason


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Force a backend inside the ``with`` block (this thread or task only).

    Args:
        name: "torch", "native" or "triton".

    Raises:
        ValueError: ``name`` is none of these.
        BackendUnavailableError: it can run on no device of this machine. Whether it can work on the tensors of
            a call is checked at the call.
    """
    _check_name(name, "use_backend(name)")
    reasons = {device: unavailable(name, device) for device in PREFERRED}
    if all(reasons.values()):
        why = "; ".join(f"{device}: {reason}" for device, reason in reasons.items())
        raise BackendUnavailableError(f"backend {name!r} cannot run here: {why}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def forced() -> str | None:
    """The backend that the user forces, if any.

    Raises:
        ValueError: the environment variable WE_KERNELS_BACKEND names no backend.
    """
    name = _forced.get()
    if name is None and (name := os.environ.get(ENVIRONMENT)):
        _check_name(name, f"the environment variable {ENVIRONMENT}")
    return name or None


def _check_name(name: str, where: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"{where} must be one of {', '.join(map(repr, BACKENDS))}, got {name!r}")
