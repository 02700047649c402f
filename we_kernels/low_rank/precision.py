"""The user's choice of a faster, coarser product must not reach the projection."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No TensorFloat-32, no bfloat16 products, no autocast: the bounds on errors are those of whole float32."""
    matmuls: tuple[Any, ...] = (torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None))
    with torch.autocast(device.type, enabled=False):
        if all(hasattr(matmul, "fp32_precision") for matmul in matmuls):
            # The older setting cannot even be read once a user has touched this one.
            chosen = [matmul.fp32_precision for matmul in matmuls]
            try:
                for matmul in matmuls:
                    matmul.fp32_precision = "ieee"
                yield
            finally:
                for matmul, precision in zip(matmuls, chosen, strict=True):
                    matmul.fp32_precision = precision
        else:  # torch < 2.9
            former = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("highest")
            try:
                yield
            finally:
                torch.set_float32_matmul_precision(former)
