"""Writing to a model's tensors, whatever mode they were made in."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor


def overwrite_(target: Tensor, values: Tensor) -> None:
    """``target.copy_(values)``, also where ``target`` was made in inference mode: torch refuses that outside of it."""
    with torch.inference_mode() if target.is_inference() else nullcontext():
        target.copy_(values)
