"""Activity by channel: the public functions and their arguments' checks."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import check_integer
from ..runtime.weights import check_readable
from . import operators


@torch.no_grad()
def channel_activity(activation: Tensor, dim: int = 1) -> Tensor:
    """Mean absolute activation of each channel: float32 [C], over all dimensions but one; 0 for an empty batch.

    The sums are those of `add_channel_activity_`, in float64. A NaN or an infinity makes its channel's mean NaN or
    infinite. Source: the numerator of the score of Sokar et al., "The Dormant Neuron Phenomenon in Deep Reinforcement
    Learning", ICML 2023 (arXiv 2302.12902), definition 3.1.

    Args:
        activation: float32, float64, float16 or bfloat16 of at least one dimension, with any strides, expanded views
            included; only read, and not copied.
        dim: the dimension along which the channels lie: 1 of [N, C, H, W], -1 of [N, T, F].

    Raises:
        TypeError, ValueError: an argument of the wrong kind, dtype or range.
    """
    dim = _check_activation(activation, dim)
    channels, device = activation.shape[dim], activation.device
    dtype = torch.float32 if device.type == "mps" else torch.float64
    sums = torch.zeros(channels, dtype=dtype, device=device)
    if activation.numel() == 0:
        return sums.float()
    operators.add_channel_activity_(sums, activation, dim, True)
    return (sums / (activation.numel() // channels)).float()


@torch.no_grad()
def add_channel_activity_(
    sums: Tensor, activation: Tensor, dim: int = 1, *, offset: int = 0, block: int = 1, overwrite: bool = False
) -> None:
    """Add to each unit's sum the absolute activations of its channels, over all other dimensions, in one pass.

    Unit u has the channels ``offset + u * block`` to ``offset + (u + 1) * block - 1``. float64 activations are summed
    in float64; others in short parts in float32, which are added in float64. ("torch" adds each example's in float32,
    on a CPU one by one.) The order is fixed by shape and strides: equal calls on a backend give equal bits, those of
    "native" and "triton" whatever the number of threads. Nothing waits for a GPU, and a CUDA graph can record it.

    Args:
        sums: float32 or float64 [U], dense, on the activation's device; changed in place.
        activation: as in `channel_activity`.
        dim: the dimension along which the channels lie.
        offset: first channel of unit 0.
        block: channels of each unit, which follow each other (a flattened channel's positions).
        overwrite: set the sums instead of adding to them; whatever they hold, NaN included, is forgotten.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, size, dtype, device or range; nothing is changed.
    """
    dim = _check_activation(activation, dim)
    if not isinstance(sums, Tensor):
        raise TypeError(f"sums must be a tensor, got {type(sums).__name__}")
    if sums.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"sums must be float32 or float64, got {sums.dtype}")
    if sums.dim() != 1 or not sums.is_contiguous():
        raise ValueError(
            f"sums must be a dense vector (a row of a contiguous tensor, not a column), got shape {tuple(sums.shape)} "
            f"with strides {sums.stride()}"
        )
    if sums.device != activation.device:
        raise ValueError(f"sums must be on {activation.device}, like the activation, got {sums.device}")
    check_readable(sums, "sums")
    units, channels = sums.numel(), activation.shape[dim]
    offset, block = check_integer(offset, "offset"), check_integer(block, "block")
    if block < 1:
        raise ValueError(f"block must be at least 1, got {block}")
    if offset < 0 or offset + units * block > channels:
        raise ValueError(
            f"offset, block and sums must lie within the {channels} channels of dimension {dim} of activation, got "
            f"{offset} to {offset + units * block}"
        )
    if activation.numel() == 0 or units == 0:
        if overwrite:
            sums.zero_()
        return
    if (offset, units * block) != (0, channels):
        activation = activation.narrow(dim, offset, units * block)
    if block > 1:
        activation = activation.unflatten(dim, (units, block))
    operators.add_channel_activity_(sums, activation, dim, bool(overwrite))


def _check_activation(activation: Tensor, dim: int) -> int:
    """``dim`` from the start."""
    check_readable(activation, "activation")
    dim = check_integer(dim, "dim")
    if not -activation.dim() <= dim < activation.dim():
        raise ValueError(
            f"dim must be in [{-activation.dim()}, {activation.dim() - 1}] for an activation of shape "
            f"{tuple(activation.shape)}, got {dim}"
        )
    return dim % activation.dim()
