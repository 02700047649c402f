"""The Triton kernels as a backend."""

from __future__ import annotations

import torch


def unavailable(device: torch.device) -> str | None:
    """Why Triton cannot work on tensors of ``device``; None when it can."""
    return "not there yet"
