"""`UnitSums`: sums of absolute activations at one place, by a hook that never waits for the device."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

import we_kernels as wk
from we_kernels.checks import is_integer, is_number

from ..model.unit_graph import ActivationPlace


class UnitSums:
    """What a layer's units put out at one place, summed over examples and positions.

    A copy of the module, made by copy or pickle, has a hook that does nothing.

    Args:
        place: where.
        units: how many.
        batches: only the last so many calls count; all when None.
        with_gradients: only calls that record gradients count.
    """

    def __init__(self, place: ActivationPlace, units: int, batches: int | None, with_gradients: bool) -> None:
        self._place, self._units, self._batches, self._with_gradients = place, units, batches, with_gradients
        self._sums: Tensor | None = None  # [calls kept, units]
        self._counts: list[int] = []
        self.calls = 0

    def attach(self) -> RemovableHandle:
        """Start summing."""
        if "torch._dynamo" in sys.modules:  # importing it takes seconds
            # Compiled, the count of calls would be a constant and every pass compiled anew.
            self._add = torch.compiler.disable(self._add)  # type: ignore[method-assign]
        if self._place.is_output:
            return self._place.module.register_forward_hook(self)
        return self._place.module.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module: torch.nn.Module, given: tuple[Any, ...], further: Any) -> None:
        """The hook of either kind: ``further`` is the output, or the arguments that were given by name."""
        if module is not self._place.module:  # a replica
            return
        if self._with_gradients and not torch.is_grad_enabled():
            return
        if self._place.is_output:
            self._add(further.detach())
        else:
            self._add(next(iter([*given, *further.values()])).detach())

    @property
    def kept_calls(self) -> int:
        """How many calls are in the sums."""
        return self.calls if self._batches is None else min(self.calls, self._batches)

    @property
    def elements(self) -> int:
        """How many activations of each unit are in the sums."""
        return sum(self._counts)

    def clear(self) -> None:
        """Forget what was seen."""
        self.calls, self._counts = 0, [0] * len(self._counts)

    def state_dict(self) -> dict[str, Any]:
        """What was seen, as plain numbers; waits for the device."""
        sums = [] if self._sums is None else self._sums[: self.kept_calls].tolist()
        return {"sums": sums, "counts": self._counts[: len(sums)], "calls": self.calls}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from there, with the sums on ``device``."""
        if not state["sums"]:
            self.clear()
            return
        rows = 1 if self._batches is None else self._batches
        self._sums = torch.zeros(rows, self._units, dtype=sum_dtype(device), device=device)
        self._sums[: len(state["sums"])] = torch.tensor(state["sums"], dtype=self._sums.dtype)
        self._counts = [*state["counts"], *[0] * (rows - len(state["counts"]))]
        self.calls = state["calls"]

    def total(self, device: torch.device) -> Tensor:
        """[units], where the activations were; zeros on ``device`` where nothing was ever seen."""
        if self._sums is None:
            return torch.zeros(self._units, dtype=sum_dtype(device), device=device)
        return self._sums[: self.kept_calls].sum(0)

    @torch.no_grad()
    @torch.inference_mode(False)  # the sums outlive the mode of the pass
    def _add(self, values: Tensor) -> None:
        if torch._C._functorch.is_functorch_wrapped_tensor(values):
            raise RuntimeError(
                "units cannot be measured within transforms of torch.func (vmap, grad); stop() before them"
            )
        span = self._place.span
        factor, rest = divmod(values.shape[span.axis], span.size)
        if rest or not (factor == 1 or (factor and span.open)):
            raise RuntimeError(
                f"{self._place.name} has {values.shape[span.axis]} features where {span.size} were expected: the model "
                "was changed; make a new UnitActivity"
            )
        row, first = self._row(values.device)
        units = (span.axis, span.offset * factor, span.block * factor)
        (_add_by_kernel if _has_kernel(values) else _add_by_torch)(row, values, *units, overwrite=first)
        number = self.calls % len(self._counts)
        count = values.numel() // values.shape[span.axis] * span.block * factor
        self._counts[number] = count + (0 if first else self._counts[number])
        self.calls += 1

    def _row(self, device: torch.device) -> tuple[Tensor, bool]:
        """Where this call's sums go, and whether they are the first ones there."""
        rows = 1 if self._batches is None else self._batches
        if self._sums is None:
            self._sums = torch.empty(rows, self._units, dtype=sum_dtype(device), device=device)
            self._counts = [0] * rows
        elif self._sums.device != device:  # the model was moved
            self._sums = self._sums.to(device)
        return self._sums[self.calls % rows], self._batches is not None or self.calls == 0

    def __reduce__(self) -> tuple[type[_Nothing], tuple[()]]:
        return _Nothing, ()


def fits(state: Any, units: int, batches: int | None) -> bool:
    """Whether `UnitSums.load_state_dict` takes a state, for so many units."""
    if not isinstance(state, Mapping) or not is_integer(state.get("calls")):
        return False
    sums, counts = state.get("sums"), state.get("counts")
    return (
        isinstance(sums, list)
        and isinstance(counts, list)
        and len(sums) == len(counts) <= (1 if batches is None else batches)
        and all(map(is_integer, counts))
        and all(isinstance(row, list) and len(row) == units and all(map(is_number, row)) for row in sums)
    )


def emptied(state: Mapping[str, Any]) -> dict[str, Any]:
    """A `UnitSums.state_dict` of as many calls in which nothing was seen."""
    return {**state, "sums": [[0.0] * len(row) for row in state["sums"]], "counts": [0] * len(state["counts"])}


def sum_dtype(device: torch.device) -> torch.dtype:
    """float64 is exact enough for any number of batches; not every device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def _has_kernel(values: Tensor) -> bool:
    return (
        type(values) is Tensor
        and values.dtype in wk.DTYPES
        and values.device.type in ("cpu", "cuda")
        and values.layout == torch.strided
        and not values.is_neg()
    )


def _add_by_kernel(row: Tensor, values: Tensor, dim: int, offset: int, block: int, *, overwrite: bool) -> None:
    wk.add_channel_activity_(row, values, dim, offset=offset, block=block, overwrite=overwrite)


def _add_by_torch(row: Tensor, values: Tensor, axis: int, offset: int, block: int, *, overwrite: bool) -> None:
    others = [dim for dim in range(values.dim()) if dim != values.dim() + axis]
    dtype = values.dtype if values.dtype in (torch.float32, torch.float64) else torch.float32
    sums = torch.linalg.vector_norm(values, 1, others, dtype=dtype) if others else values.abs().to(dtype)
    own = sums[offset : offset + len(row) * block].unflatten(0, (len(row), block)).sum(1)
    if overwrite:
        row.copy_(own)
    else:
        row.add_(own)


class _Nothing:
    """The hook of a copy."""

    def __call__(self, *_: object) -> None:
        """Nothing."""
