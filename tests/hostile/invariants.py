"""What must hold after a call, whether it returned or raised."""

from __future__ import annotations

import random
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

import we_kernels
import weight_evolution

OURS = tuple(str(Path(package.__file__).parent) for package in (we_kernels, weight_evolution))
CLEAR = (ValueError, TypeError, RuntimeError, NotImplementedError)
"""Errors that a caller may be expected to read."""


class Violation(AssertionError):
    """A call broke a promise."""


def globals_now() -> dict[str, Any]:
    """State of the process that no call may change."""
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "threads": torch.get_num_threads(),
        "random state": torch.get_rng_state().numpy().tobytes(),
        "NumPy's random state": str(numpy_state),
        "Python's random state": random.getstate(),
    }


def bits(models: Sequence[nn.Module]) -> dict[str, tuple[Any, ...]]:
    """Name -> identity and content of every parameter and buffer, and the plain attributes of every module."""
    found: dict[str, tuple[Any, ...]] = {}
    for i, model in enumerate(models):
        for name, module in model.named_modules():
            for kind in (module._parameters, module._buffers):
                for key, tensor in kind.items():
                    found[f"{i}:{name}.{key}"] = () if tensor is None else (id(tensor), *content(tensor))
            plain = {k: repr(v) for k, v in vars(module).items() if isinstance(v, (int, float, str, type(None)))}
            kept = {k: (id(v), *content(v)) for k, v in vars(module).items() if isinstance(v, Tensor)}
            hooks = {k: len(v) for k, v in vars(module).items() if k.endswith("_hooks") and hasattr(v, "__len__")}
            found[f"{i}:{name} (attributes)"] = (plain, kept, hooks, sorted(vars(module)))
    return found


def frozen(models: Sequence[nn.Module]) -> dict[str, tuple[Any, ...]]:
    """Name -> content of the frozen parameters, which only an optimizer may change."""
    named = [(f"{i}:{name}", p) for i, model in enumerate(models) for name, p in model.named_parameters()]
    return {name: content(p) for name, p in named if not p.requires_grad}


def content(tensor: Tensor) -> tuple[Any, ...]:
    """Shape, strides, dtype, device and the bits."""
    if is_lazy(tensor):
        return ("lazy",)
    plain = tensor.detach()
    strides = plain.stride() if plain.layout == torch.strided else None
    return (plain.shape, strides, plain.dtype, plain.device, b"" if plain.is_meta else _bytes(plain.to_dense()))


def _bytes(plain: Tensor) -> bytes:
    with torch.inference_mode(False), torch.no_grad():  # a clone made there can be viewed as bytes, whatever it is of
        return plain.clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8).numpy().tobytes()


def flat(state: object, name: str = "") -> dict[str, Any]:
    """Path -> number, string or content of a tensor."""
    if isinstance(state, Tensor):
        return {name: content(state)}
    if isinstance(state, (list, tuple)):
        state = dict(enumerate(state))
    if not isinstance(state, dict):
        return {name: repr(state)}
    return {k: v for key, value in state.items() for k, v in flat(value, f"{name}[{key!r}]").items()}


def optimizer_bits(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state of each parameter, by the order in which it was made."""
    return flat(list(optimizer.state.values()))


def counters(methods: Sequence[object]) -> dict[str, Any]:
    """What the methods say of themselves without looking at the model."""
    return {f"method {i}.{k}": getattr(m, k, None) for i, m in enumerate(methods) for k in ("epoch", "ranks", "rate")}


def is_finite(model: nn.Module) -> bool:
    """Whether all parameters are."""
    return all(bool(torch.isfinite(p.detach()).all()) for p in model.parameters() if _has_numbers(p))


def _has_numbers(tensor: Tensor) -> bool:
    return not is_lazy(tensor) and not tensor.is_meta and tensor.is_floating_point() and tensor.element_size() > 1


def check_error(error: BaseException, what: str) -> None:
    """An error of ours is one that says something, and comes from us."""
    frames = traceback.extract_tb(error.__traceback__)
    within = [i for i, frame in enumerate(frames) if frame.filename.startswith(OURS)]
    if not within:
        return  # torch's own, from a call that does not involve this package
    if any(frame.name == "_call_impl" for frame in frames[within[0] :]):
        return  # the network's own forward, which report and compact run
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
