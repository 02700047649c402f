"""The C++/CUDA extension as a backend."""

from __future__ import annotations

import torch


def unavailable(device: torch.device) -> str | None:
    """Why the extension cannot work on tensors of ``device``; None when it can."""
    return "the native extension is not built"


def build_info() -> str:
    """How the extension was built, or why there is none."""
    return "not built"
