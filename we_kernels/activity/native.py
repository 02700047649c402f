"""Sums of absolute activations by channel: one call, on torch's number of threads."""

from __future__ import annotations

import torch
from torch import Tensor

from ..runtime.layout import DTYPES
from ..runtime.native import module
from .geometry import with_geometry


def add_channel_activity_(sums: Tensor, activation: Tensor, dim: int, overwrite: bool) -> None:
    """``sums`` [C], float32 or float64, in place."""
    activation, geometry = with_geometry(activation, dim)
    module.add_activity(
        activation.data_ptr(),
        DTYPES.index(activation.dtype),
        *geometry,
        sums.data_ptr(),
        len(sums),
        sums.dtype == torch.float64,
        overwrite,
        torch.get_num_threads(),
    )
