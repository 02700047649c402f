"""How much of its own weights a network keeps."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def layer_coefficients(
    own: Tensor, neighbour: Tensor, *, strength: float, sharpness: float, rounded: bool = False
) -> Tensor:
    """``(A / pi) * atan(c * (own - neighbour)) + 0.5``, float64 [L], of the information of each layer.

    ``rounded``: to two decimals, as the released program does.
    """
    difference = own.double() - neighbour.double()
    coefficients = strength / math.pi * torch.atan(sharpness * difference) + 0.5
    return coefficients.round(decimals=2) if rounded else coefficients


def filter_coefficients(own: Tensor, neighbour: Tensor) -> Tensor:
    """``|own| / (|own| + |neighbour|)``, float64 [N], of the BatchNorm scales; 0.5 where both are 0."""
    own, neighbour = own.double().abs(), neighbour.double().abs()
    total = own + neighbour
    return torch.where(total > 0, own / total, 0.5)
