"""The library that the operators are registered with, and the one way to do it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("we_kernels", "DEF")

_TAGS = (torch.Tag.cudagraph_unsafe,) if hasattr(torch.Tag, "cudagraph_unsafe") else ()
"""Inductor leaves the operators out of its own CUDA graphs: tables and scratch made during its warm-up would lie in the
memory pool of those graphs, which it resets. torch 2.7 has no such tag."""


def define(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Register an operator: its schema, what runs on CPU and CUDA tensors, and what tracing runs instead."""
    name = schema[: schema.index("(")]
    if written := [i for i, argument in enumerate(schema.split(", ")) if "!)" in argument]:
        implementation = _in_any_mode(implementation, written)
    _LIBRARY.define(schema, tags=_TAGS)
    _LIBRARY.impl(name, implementation, "CPU")
    _LIBRARY.impl(name, implementation, "CUDA")
    torch.library.register_fake(f"we_kernels::{name}", fake, lib=_LIBRARY)


def _in_any_mode(implementation: Callable[..., Any], written: Sequence[int]) -> Callable[..., Any]:
    """Inference tensors (of a model that was loaded or copied in inference mode) can be written in that mode only.

    Otherwise torch raises when the first of them is written already, and the compiled backend does not raise at all.

    Args:
        implementation: of an operator.
        written: positions of the arguments that it writes to.
    """

    @wraps(implementation)
    def run(*args: Any) -> Any:
        for i in written:
            tensors = args[i] if isinstance(args[i], list) else [] if args[i] is None else [args[i]]
            if any(map(Tensor.is_inference, tensors)):
                with torch.inference_mode():
                    return implementation(*args)
        return implementation(*args)

    return run


def count_filters(weights: Sequence[Tensor], filter_dims: Sequence[int]) -> int:
    """F."""
    return sum(weight.shape[dim] for weight, dim in zip(weights, filter_dims, strict=True))
