"""An operator: declared once, implemented by several backends, known to PyTorch as ``torch.ops.we_kernels``.

A call goes straight to the implementation, unless torch.compile traces it or a dispatch mode is active: then it goes
through PyTorch, whose schema declares what is written to (checked by ``torch.library.opcheck``).
``torch.library.Library`` is used rather than ``torch.library.custom_op``: the latter's wrapper costs 98 us per call on
a list of 60 mutated tensors, this one 17 us (2 CPU cores, torch 2.13).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from .errors import BackendUnavailableError
from .runtime import backends

Implementation = Callable[..., Any]

OPERATORS: dict[str, Operator] = {}
"""All of them, by name."""

_LIBRARY = torch.library.Library("we_kernels", "DEF")

_TAGS = (torch.Tag.cudagraph_unsafe,) if hasattr(torch.Tag, "cudagraph_unsafe") else ()
"""Inductor leaves the operators out of its own CUDA graphs: tables and scratch made during its warm-up would lie in the
memory pool of those graphs, which it resets. torch 2.7 has no such tag."""

_IN_PYTORCH = ("torch", "any")
"""Backends whose implementations write with PyTorch's own operations."""


class Operator:
    """One operator.

    Args:
        schema: as PyTorch writes it; a ``!`` marks what is written to.
        takes: the types of an implementation's arguments. One with ``_fields`` (a NamedTuple, say) stands for that many
            entries of the schema, in their order, anything else for one.
        files: backend -> the file in the operator's folder that has its implementation. "native on cuda" stands for
            the extension's CUDA kernels, "any" for what serves all backends unless torch is forced. A file is imported
            when it is first needed.
        folder: ``__package__`` of the declaration.
        function: name of the implementation, if it is not the operator's.
        fake: what tracing runs instead, on the schema's arguments; none for an operator that returns nothing.
        around: ``(implementation, *arguments) -> result``, for what is done alike on all backends.
    """

    def __init__(
        self,
        schema: str,
        takes: Sequence[Any],
        files: Mapping[str, str],
        folder: str | None,
        *,
        function: str | None = None,
        fake: Implementation | None = None,
        around: Implementation | None = None,
    ) -> None:
        self.name = schema[: schema.index("(")]
        self._takes, self._files, self._folder = takes, files, folder
        self._function, self._around = function or self.name, around
        self._written = [i for i, argument in enumerate(schema.split(", ")) if "!)" in argument]
        self._chosen: dict[tuple[str | None, str], tuple[str, Implementation]] = {}
        OPERATORS[self.name] = self
        _LIBRARY.define(schema, tags=_TAGS)
        for key in ("CPU", "CUDA"):
            _LIBRARY.impl(self.name, self._from_torch, key)
        torch.library.register_fake(f"we_kernels::{self.name}", fake or _nothing, lib=_LIBRARY)

    def __call__(self, *arguments: Any) -> Any:
        """With an implementation's arguments.

        Raises:
            BackendUnavailableError: the forced backend cannot work on these tensors.
        """
        if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
            return getattr(torch.ops.we_kernels, self.name)(*_flat(arguments))
        return self._run(arguments, _flat(arguments))

    def _from_torch(self, *flat: Any) -> Any:
        arguments, start = [], 0
        for kind in self._takes:
            fields = getattr(kind, "_fields", None)
            end = start + (len(fields) if fields else 1)
            arguments.append(kind._make(flat[start:end]) if fields else flat[start])
            start = end
        with torch.no_grad():
            return self._run(arguments, flat)

    def _run(self, arguments: Sequence[Any], flat: Sequence[Any]) -> Any:
        name, implementation = self._choice(_device_of(flat))
        written = [flat[i] for i in self._written if flat[i] is not None]
        with _mode_for(written) if name in _IN_PYTORCH else nullcontext():
            result = self._around(implementation, *arguments) if self._around else implementation(*arguments)
        for tensors in written:
            increment_version(tensors)
        return result

    def _choice(self, device: torch.device) -> tuple[str, Implementation]:
        key = backends.forced(), device.type
        choice = self._chosen.get(key)
        if choice is None:
            choice = self._chosen[key] = self._choose(*key)
        return choice

    def _choose(self, forced: str | None, device: str) -> tuple[str, Implementation]:
        if forced and (reason := self._unable(forced, device)):
            raise BackendUnavailableError(f"backend {forced!r} cannot work on {device} tensors: {reason}")
        if "any" in self._files and forced != "torch":
            name = "any"
        else:
            able = (name for name in backends.PREFERRED.get(device, ()) if not self._unable(name, device))
            name = forced or next(able, "torch")
        return name, getattr(import_module(f"{self._folder}.{self._file(name, device)}"), self._function)

    def _unable(self, name: str, device: str) -> str | None:
        if reason := backends.unavailable(name, device):
            return reason
        if "any" in self._files or self._file(name, device):
            return None
        return f"the {name} backend has no {device} kernels for {self.name}"

    def _file(self, name: str, device: str) -> str | None:
        return self._files.get("native on cuda" if (name, device) == ("native", "cuda") else name)


def backend_of(operator: str, device: torch.device) -> str:
    """Name of the backend that an operator uses now for tensors of a device.

    Args:
        operator: its name, such as "evolve_".
        device: of the tensors.

    Raises:
        BackendUnavailableError: the forced backend cannot work on this device.
    """
    return OPERATORS[operator]._choice(device)[0]


def count_filters(weights: Sequence[Tensor], filter_dims: Sequence[int]) -> int:
    """F, for what tracing runs instead."""
    return sum(weight.shape[dim] for weight, dim in zip(weights, filter_dims, strict=True))


def _nothing(*arguments: Any) -> None:
    return None


def _flat(arguments: Iterable[Any]) -> list[Any]:
    flat: list[Any] = []
    for argument in arguments:
        if hasattr(argument, "_fields"):
            # What torch 2.7 traces; and torch 2.11 adds no subclass of a named tuple to a list.
            flat += list(argument) if isinstance(argument, tuple) else argument.fields()
        else:
            flat.append(argument)
    return flat


def _device_of(flat: Iterable[Any]) -> torch.device:
    """Of the first tensor: all are on one device."""
    for argument in flat:
        first = argument[0] if isinstance(argument, (list, tuple)) and argument else argument
        if isinstance(first, Tensor):
            return first.device
    raise AssertionError("an operator is called with a tensor")


def _mode_for(written: Iterable[Tensor | Sequence[Tensor]]) -> AbstractContextManager[Any]:
    """Inference tensors (of a model that was loaded or copied in inference mode) can be written in that mode only.

    Otherwise PyTorch raises when the first of them is written already.
    """
    lists = ([tensors] if isinstance(tensors, Tensor) else tensors for tensors in written)
    return torch.inference_mode() if any(any(map(Tensor.is_inference, each)) for each in lists) else nullcontext()
