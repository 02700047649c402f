"""The one way to launch a kernel: compiled once per set of constants, past Triton's look-up from then on."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import triton

from ..transfer import Place, on

MOST_PROGRAMS = 2**31 - 1
"""CUDA's limit on a grid's first dimension, the only one used."""

observers: list[Callable[[str, tuple[Any, ...], dict[str, Any]], None]] = []
"""Called at every launch with the kernel's name, its arguments and its constants; for tests and traces."""

_compiled: dict[tuple[Any, ...], tuple[Any, list[Any]]] = {}
"""For each kernel, device and constants: what Triton compiled, and the constants in the signature's order.
Asking Triton again took the host about 20 us per launch, with a driver that launches nothing."""

_hooks = triton.knobs.runtime if hasattr(triton, "knobs") else triton.compiler.CompiledKernel
"""Where a profiler puts what it wants called before and after every launch; Triton 3.3 has no knobs."""


_TRITONS_OWN = {"params", "specialization", "options", "backend"}
"""Variables of the function that Triton generates to bind a launch's arguments: none for a parameter."""


def kernel(function: Callable[..., None]) -> Any:
    """``triton.jit`` without specialisation on argument values.

    A kernel is then compiled once per set of constants, so that no new size compiles anew (inside a capture, say).

    Raises:
        ValueError: a parameter's name cannot be launched.
    """
    names = inspect.signature(function).parameters
    if taken := _TRITONS_OWN.intersection(names):
        raise ValueError(f"{function.__name__}: rename the parameters {sorted(taken)}, which Triton overwrites")
    return triton.jit(function, do_not_specialize=[name for name in names if name not in function.__annotations__])


def launch(
    function: Any,
    programs: int,
    place: Place,
    *arguments: Any,
    num_warps: int = 4,
    maxnreg: int | None = None,
    **constants: Any,
) -> None:
    """Run ``programs`` instances of a `kernel`; none when ``programs`` is 0.

    Args:
        function: from `kernel`.
        programs: size of the grid.
        place: the device of the tensors among ``arguments``, and the stream.
        num_warps, maxnreg: warps of a program, registers that a thread may use (None: the compiler's choice).
        constants: the kernel's compile-time parameters.
    """
    if programs == 0:
        return
    if programs > MOST_PROGRAMS:
        raise ValueError(
            f"the bank needs {programs} programs in one launch, more than CUDA's {MOST_PROGRAMS}; split it"
        )
    for observer in observers:
        observer(function.__name__, arguments, {"num_warps": num_warps, "maxnreg": maxnreg, **constants})
    with _quiet_numpy() if place.device.type == "cpu" else on(place.device):
        # Tensors have one dtype per kernel and constants; a number over 31 bits is another type to Triton.
        wide = [x.bit_length() > 31 for x in arguments if type(x) is int]
        key = (id(function), place.device.index, num_warps, maxnreg, *constants.values(), *wide)
        known = _compiled.get(key)
        if known:
            _run(*known, programs, place, arguments)
            return
        # No contraction of a * b + c: crossover is bit-equal to the reference.
        options = {"num_warps": num_warps, "maxnreg": maxnreg, "enable_fp_fusion": False, **constants}
        compiled = function[(programs,)](*arguments, **options)
        if compiled is not None:  # interpreted
            _compiled[key] = compiled, [constants[name] for name in function.arg_names if name in constants]


def _run(compiled: Any, last: list[Any], programs: int, place: Place, arguments: tuple[Any, ...]) -> None:
    """Launch what Triton compiled; it would describe the launch for hooks even if there are none."""
    if _is_set(_hooks.launch_enter_hook) or _is_set(_hooks.launch_exit_hook):
        compiled[(programs, 1, 1)](*arguments, *last)
        return
    # Triton asks the driver about every tensor's address, but takes numbers as they are.
    plain = [x.data_ptr() if isinstance(x, torch.Tensor) else x for x in arguments]
    compiled.run(
        programs, 1, 1, place.stream, compiled.function, compiled.packed_metadata, None, None, None, *plain, *last
    )


def _is_set(hook: Any) -> bool:
    """A function, or since Triton 3.5 a chain of them, which may be empty."""
    return hook is not None and bool(getattr(hook, "calls", True))


def _quiet_numpy() -> AbstractContextManager[Any]:
    """The interpreter computes with NumPy, which warns of the 0 / 0 and overflows that the kernels discard."""
    import numpy

    return numpy.errstate(all="ignore")
