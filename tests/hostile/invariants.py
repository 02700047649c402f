"""What must hold after a call, whether it returned or raised."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import we_kernels
import weight_evolution

OURS = tuple(str(Path(package.__file__).parent) for package in (we_kernels, weight_evolution))
CLEAR = (ValueError, TypeError, RuntimeError, NotImplementedError)
"""Errors that a caller may be expected to read."""


class Violation(AssertionError):
    """A call broke a promise."""


def globals_now() -> dict[str, Any]:
    """State of the process that no call may change."""
    return {
        "default dtype": torch.get_default_dtype(),
        "grad mode": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
        "random state": torch.get_rng_state().tolist()[:64],
    }


def bits(model: nn.Module) -> dict[str, tuple[Any, ...]]:
    """Name -> identity and content of every parameter and buffer, and the plain attributes of every module."""
    found: dict[str, tuple[Any, ...]] = {}
    for name, module in model.named_modules():
        for kind in (module._parameters, module._buffers):
            for key, tensor in kind.items():
                found[f"{name}.{key}"] = (
                    () if tensor is None else (id(tensor), tensor.shape, tensor.dtype, _bytes(tensor))
                )
        plain = {k: repr(v) for k, v in vars(module).items() if isinstance(v, (int, float, str, bool, type(None)))}
        hooks = {k: len(v) for k, v in vars(module).items() if k.endswith("_hooks") and hasattr(v, "__len__")}
        found[f"{name} (attributes)"] = (plain, hooks, sorted(vars(module)))
    return found


def _bytes(tensor: Tensor) -> bytes:
    plain = tensor.detach()
    return plain.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes() if plain.numel() else b""


def is_finite(model: nn.Module) -> bool:
    """Whether all parameters are."""
    return all(bool(torch.isfinite(p.detach()).all()) for p in model.parameters() if p.is_floating_point())


def check_error(error: BaseException, what: str) -> None:
    """An error of ours is one that says something, and comes from us."""
    frames = traceback.extract_tb(error.__traceback__)
    within = [i for i, frame in enumerate(frames) if frame.filename.startswith(OURS)]
    if not within:
        return  # torch's own, from a call that does not involve this package
    if not isinstance(error, CLEAR) or isinstance(error, (RecursionError,)):
        raise Violation(f"{what}: {type(error).__name__} is no error for a user: {error}") from error
    if len(str(error)) < 15:
        raise Violation(f"{what}: the error says too little: {error!r}") from error
    if not frames[-1].filename.startswith(OURS):
        raise Violation(f"{what}: not raised by this package but under it: {error!r}") from error


def require_equal(before: dict[str, Any], after: dict[str, Any], what: str) -> None:
    """Names the first entry that differs."""
    for key in [*before, *after]:
        if before.get(key) != after.get(key):
            raise Violation(f"{what}: {key} changed")
