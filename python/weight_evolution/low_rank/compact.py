"""Replaces a layer by two smaller ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from we_kernels.checks import check_integer

from ..model.copies import copy_model
from ..model.module_filters import EVERYTHING
from .layers import Layer, Plain, find_layers

VANISHING = 1e-4
"""A layer whose largest singular value is smaller is left alone."""


def compact_like(model: nn.Module, ranks: Mapping[str, int]) -> nn.Module:
    """A copy of the model with these layers replaced by two freshly initialized ones of that rank.

    The structure that `LowRankProjection.compact` gives for the same ranks, with the same state_dict keys: to load a
    checkpoint of a compact model, or to train that structure from scratch.

    Args:
        model: the network as it was before.
        ranks: layer name -> rank, as in `LowRankProjection.compact_ranks`.

    Raises:
        TypeError: a rank is no integer.
        ValueError: a name is not that of a conv or Linear that can be replaced, or a rank is not in [1, full rank].
    """
    if not ranks:
        return copy_model(model)
    layers, skipped = find_layers(model, EVERYTHING, linear=True)
    by_name = {layer.name: layer for layer in layers}
    replacements: dict[nn.Module, nn.Module] = {}
    for name, rank in ranks.items():
        if name not in by_name:
            raise ValueError(f"ranks: {name!r} is not a layer that can be replaced" + _because(skipped.get(name)))
        full_rank = by_name[name].full_rank
        if not 1 <= check_integer(rank, f"ranks[{name!r}]") <= full_rank:
            raise ValueError(f"ranks[{name!r}] must be an integer in [1, {full_rank}], got {rank!r}")
        first, second = _two_layers(by_name[name].module, int(rank))
        first.reset_parameters()
        second.reset_parameters()
        replacements[by_name[name].module] = _pair(by_name[name].module, first, second)
    return copy_model(model, replacements)


@torch.no_grad()
def factorize(layer: Layer, rank: int) -> LowRankPair:
    """Two layers that compute the best rank-``rank`` approximation of this one; exact if it has that rank."""
    first, second = _two_layers(layer.module, rank)
    left, right = _factors(as_matrix(layer.weight), rank, layer.weight.dtype)
    first.weight.copy_(right.reshape(first.weight.shape))
    second.weight.copy_(left.reshape(second.weight.shape))
    if layer.module.bias is not None:
        assert second.bias is not None
        second.bias.copy_(layer.module.bias)
    return _pair(layer.module, first, second)


class LowRankPair(nn.Sequential):
    """Two layers in place of one; what a model may read of that one is still there."""

    __jit_unused_properties__ = ["weight", "bias"]  # noqa: RUF012

    @property
    def weight(self) -> Tensor:
        """The weight of the one layer that computes the same: a product, made when it is read."""
        first, second = (cast(Plain, layer).weight for layer in self)
        return (second.flatten(1) @ first.flatten(1)).view(second.shape[:1] + first.shape[1:])

    @property
    def bias(self) -> Tensor | None:
        """The second layer's."""
        return cast(Plain, self[1]).bias


def _pair(module: Plain, first: Plain, second: Plain) -> LowRankPair:
    pair = LowRankPair(first, second).train(module.training)
    for name in module.__constants__:
        if hasattr(module, name):
            setattr(pair, name, getattr(module, name))
    return pair


def _factors(matrix: Tensor, rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """[rows, rank] and [rank, columns] of the best approximation, each with the roots of the singular values.

    ``matrix`` is float64. A float64 Gram matrix resolves singular values down to 1e-8 of the largest, less than the
    rounding of coarser weights; only weights that are float64 themselves need the decomposition of the matrix.
    """
    if dtype == torch.float64:
        u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
        root = s[:rank].sqrt()
        return u[:, :rank] * root, root[:, None] * vt[:rank]
    if matrix.shape[0] > matrix.shape[1]:
        right, left = _factors(matrix.mT, rank, dtype)
        return left.mT, right.mT
    u = torch.linalg.eigh(matrix @ matrix.mT)[1][:, -rank:].flip(1)
    rows = u.mT @ matrix
    root = torch.linalg.vector_norm(rows, dim=1).sqrt()
    return u * root, rows / root.clamp_min(torch.finfo(root.dtype).tiny)[:, None]


def vanishes(matrix: Tensor) -> bool:
    """Whether the largest singular value is under 1e-4."""
    norm = float(torch.linalg.matrix_norm(matrix))
    # norm / sqrt(full rank) <= largest <= norm, so mostly no decomposition is needed.
    if norm < VANISHING or norm >= VANISHING * min(matrix.shape) ** 0.5:
        return norm < VANISHING
    return float(torch.linalg.matrix_norm(matrix, 2)) < VANISHING


def as_matrix(weight: Tensor, row_scale: Tensor | None = None) -> Tensor:
    """``diag(row_scale) M`` as [rows, columns], float64 on the CPU: used once per run, so accuracy matters most."""
    matrix = weight.detach().to("cpu", torch.float64).reshape(weight.shape[0], -1)
    return matrix if row_scale is None else row_scale.to(matrix)[:, None] * matrix


def _two_layers(module: Plain, rank: int) -> tuple[Plain, Plain]:
    """Uninitialized; on the device, in the dtype and memory format of the original."""
    weight, bias = module.weight, module.bias is not None
    place = {"device": weight.device, "dtype": weight.dtype}
    first: Plain
    second: Plain
    if isinstance(module, nn.Linear):
        first = skip_init(nn.Linear, module.in_features, rank, bias=False, **place)
        second = skip_init(nn.Linear, rank, module.out_features, bias=bias, **place)
    else:
        cls = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[weight.dim()]
        first = skip_init(
            cls,
            module.in_channels,
            rank,
            module.kernel_size,
            stride=module.stride,
            padding=module.padding,
            dilation=module.dilation,
            padding_mode=module.padding_mode,
            bias=False,
            **place,
        )
        second = skip_init(cls, rank, module.out_channels, 1, bias=bias, **place)
    if weight.dim() == 4 and not weight.is_contiguous():
        first.weight.data = first.weight.data.contiguous(memory_format=torch.channels_last)
    if module.bias is not None and second.bias is not None:
        second.bias.requires_grad_(module.bias.requires_grad)
    return first, second


def _because(reason: str | None) -> str:
    return "" if reason is None else f": {reason}"
