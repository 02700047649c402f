"""Which implementation runs: ``torch`` (the reference), ``native`` (C++/CUDA) or ``triton``.

Every backend module offers ``unavailable(device) -> str | None`` (the reason why it cannot work on tensors of that
device, or None) and the operators by their names; ``reference`` lists them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib import import_module
from types import ModuleType

import torch

from ..errors import BackendUnavailableError

NAMES = ("torch", "native", "triton")
ENVIRONMENT = "WE_KERNELS_BACKEND"

_MODULES = {"torch": "reference", "native": "native", "triton": "triton"}
_forced: ContextVar[str | None] = ContextVar("we_kernels_backend", default=None)


def load(name: str) -> ModuleType:
    """The module of a backend; importing it needs neither a GPU nor Triton nor the extension."""
    return import_module(f"{__name__}.{_MODULES[name]}")


def unavailable(name: str, device: torch.device) -> str | None:
    """Why ``name`` cannot work on tensors of ``device``; None when it can."""
    reason: str | None = load(name).unavailable(device)
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
    reasons = {device: unavailable(name, torch.device(device)) for device in ("cpu", "cuda")}
    if all(reasons.values()):
        raise BackendUnavailableError(f"backend {name!r} cannot run here: {_join(reasons)}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def forced(device: torch.device) -> str | None:
    """The backend that the user forces, if any.

    Raises:
        ValueError: the environment variable WE_KERNELS_BACKEND names no backend.
        BackendUnavailableError: the forced backend cannot work on this device.
    """
    name = _forced.get()
    if name is None and (name := os.environ.get(ENVIRONMENT)):
        _check_name(name, f"the environment variable {ENVIRONMENT}")
    if name and (reason := unavailable(name, device)):
        raise BackendUnavailableError(f"backend {name!r} cannot work on {device.type} tensors: {reason}")
    return name or None


def choose(device: torch.device, operator: str) -> ModuleType:
    """The backend module for tensors of ``device``: the `forced` one, else the fastest that is available.

    Args:
        device: of the tensors.
        operator: its name. ``native`` takes CUDA tensors only for operators that it has CUDA kernels for.

    Raises:
        BackendUnavailableError: the forced backend cannot work on this device.
    """
    if name := forced(device):
        if reason := _lacks(name, device, operator):
            raise BackendUnavailableError(f"backend {name!r} cannot work on {device.type} tensors: {reason}")
        return load(name)
    for name in ("triton", "native") if device.type == "cuda" else ("native",):
        if not unavailable(name, device) and not _lacks(name, device, operator):
            return load(name)
    return load("torch")


def _lacks(name: str, device: torch.device, operator: str) -> str | None:
    if name == "native" and device.type == "cuda" and operator not in load(name).CUDA_OPERATORS:
        return f"the native extension has no CUDA kernels for {operator}"
    return None


def _check_name(name: str, where: str) -> None:
    if name not in NAMES:
        raise ValueError(f"{where} must be one of {', '.join(map(repr, NAMES))}, got {name!r}")


def _join(reasons: dict[str, str | None]) -> str:
    return "; ".join(f"{device}: {reason}" for device, reason in reasons.items())
