"""How PyTorch's own CPU kernels round here: found out, because it depends on the processor and on PyTorch's build."""

from __future__ import annotations

import ctypes
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .layout import DTYPES

GRAIN = 32768
"""PyTorch's CPU kernels cut tensors of at least so many elements into parts, for several threads."""

MODE = 0x140102
"""VML_HA, VML_FTZDAZ_OFF and VML_ERRMODE_IGNORE: how ATen calls MKL's vector functions."""

_PROBE = 255


@lru_cache(maxsize=1)
def rounding() -> tuple[bool, tuple[int, ...]]:
    """How PyTorch rounds ``a + alpha * b`` on this processor: fused in float32 and float64; and csrc's `Rounding.step`.

    ATen's loops contract it where the processor can. In float16 and bfloat16 their vector bodies round once, the
    elements that are left over the product, too.
    """
    fused = bool(_residue(torch.float32, 2.0**-12).all())
    steps = [_PROBE + 1 - int(_residue(dtype, torch.finfo(dtype).eps).count_nonzero()) for dtype in DTYPES[2:]]
    return fused, (0, 0, *(step if step <= _PROBE else 0 for step in steps))


def _residue(dtype: torch.dtype, eps: float) -> Tensor:
    """What is left of (1 + eps)^2 - (1 + 2 eps): eps^2, or 0 if the square was rounded."""
    start = torch.full((_PROBE,), -(1 + 2 * eps), dtype=dtype, device="cpu")
    return start.add_(torch.full((_PROBE,), 1 + eps, dtype=dtype, device="cpu"), alpha=1 + eps)


@lru_cache(maxsize=1)
def square_roots() -> tuple[int, int, int]:
    """Addresses of the functions by which PyTorch takes square roots of float32 and float64; 0: the processor's own.

    Where it has MKL, it asks that, whose roots are not always the nearest numbers (on an AMD EPYC every fifth of
    float32 is not). What does not give PyTorch's bits is not used. The third sets how many threads MKL may use when
    called by this thread, and returns what it was: it would start some at the size of a block already.
    """
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        limit = _address(library.MKL_Set_Num_Threads_Local)
        found = _square_root(library.VMSSQRT_, torch.float32), _square_root(library.VMDSQRT_, torch.float64)
    except (OSError, AttributeError):
        return 0, 0, 0
    return *found, limit


def _square_root(function: Any, dtype: torch.dtype) -> int:
    """Address of MKL's function, which takes pointers to size, numbers, roots and mode, if PyTorch uses it."""
    numbers = torch.linspace(0.25, 4.0, 4096, dtype=dtype, device="cpu")
    wanted = numbers.sqrt()
    if wanted.tolist() == torch.tensor(list(map(math.sqrt, numbers.tolist())), dtype=dtype, device="cpu").tolist():
        return 0
    roots = torch.zeros_like(numbers)
    pointers = (ctypes.c_void_p(x.data_ptr()) for x in (numbers, roots))
    function(ctypes.byref(ctypes.c_int64(len(numbers))), *pointers, ctypes.byref(ctypes.c_int64(MODE)))
    return _address(function) if torch.equal(roots, wanted) else 0


def _address(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0
