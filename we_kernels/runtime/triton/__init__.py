"""What the Triton kernels of all operators share: for CUDA tensors, or CPU tensors under Triton's interpreter (for
tests). Importing this module imports no Triton.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch


def unavailable(device_type: str) -> str | None:
    """Why Triton cannot work on tensors of such a device; None when it can. Creates no CUDA context."""
    if not _installed():
        return "Triton is not installed; pip install triton"
    interpreted = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")
    if device_type == "cpu":
        return None if interpreted else "set TRITON_INTERPRET=1 before Triton is imported (slow, for tests)"
    if device_type != "cuda":
        return f"it works on cuda tensors, not on {device_type}"
    if interpreted:
        return "TRITON_INTERPRET is set, the interpreter works on cpu tensors; unset it"
    return None if torch.cuda.is_available() else "torch.cuda.is_available() is False; needs a GPU and a CUDA torch"


def _installed() -> bool:
    try:
        return find_spec("triton") is not None
    except ImportError:  # an import hook that blocks it
        return False
