"""Norms and values of new incoming weights that the kernel does not make itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

from ..model.seeds import seeded
from ..model.targets import by_output
from ..model.unit_graph import UnitLayer
from ..model.unit_weights import Layer
from ..model.writing import overwrite_
from ..sharding.local_part import local_part

Init = Callable[[Tensor], object]
"""Fills a tensor of a weight's shape, like the functions of torch.nn.init."""


def donor_norms(sizes: Sequence[int], revived: Tensor, scores: Tensor, norms: Tensor) -> Tensor:
    """float32 [U]: for each revived unit the L1 norm of its donor; 0 for others, and in a layer without a living unit.

    Forward matching within a layer: the unit of the lowest score has the living one of the highest, and so on, from the
    start again where living ones are fewer. Source: Lin et al. (arXiv 2110.04492).

    Args:
        sizes: units of each layer.
        revived, scores, norms: of all units, layer after layer.
    """
    return torch.cat(list(map(_donors, *(x.split(list(sizes)) for x in (revived, scores, norms)))))


def _donors(mask: Tensor, score: Tensor, norms: Tensor) -> Tensor:
    """Of one layer."""
    lowest = score.where(mask, torch.inf).argsort(stable=True)
    highest = score.where(~mask, -torch.inf).argsort(descending=True, stable=True)
    living = (~mask).sum()
    order = torch.arange(len(mask), device=mask.device) % living.clamp(min=1)
    donors = torch.empty_like(norms)
    donors[lowest] = norms[highest[order]]
    return torch.where(mask & (living > 0), donors, 0)


def draw_(layer: UnitLayer, revived: Tensor, init: Init, seed: int, rescale: bool) -> None:
    """Other random values for revived units that were just drawn; their elements of 0 (outgoing ones) stay.

    Args:
        layer: of the units.
        revived: bool [units].
        init: makes the values.
        seed: of the generator that it draws from.
        rescale: give each unit the L1 norm that it has.
    """
    weight = local_part(layer.module.weight.detach())
    fresh = by_output(layer.module, fresh_weight(weight, init, seed))
    replaced = in_place_of(by_output(layer.module, weight), fresh, revived, rescale)
    overwrite_(weight, by_module(layer.module, replaced))


def fresh_weight(like: Tensor, init: Init, seed: int) -> Tensor:
    """What ``init`` makes of a tensor of that kind."""
    fresh = torch.empty_like(like)
    with seeded(like.device, seed):
        init(fresh)
    return fresh


def in_place_of(drawn: Tensor, fresh: Tensor, revived: Tensor, rescale: bool) -> Tensor:
    """``drawn`` with other values for revived rows, where it is not 0; rescaled to the L1 norms that they have.

    Args:
        drawn, fresh: [rows, ...].
        revived: bool [rows].
        rescale: else the values stay as they are.
    """
    values = fresh.where(drawn != 0, 0)
    if rescale:
        has, wants = (x.flatten(1).float().norm(1, 1) for x in (values, drawn))
        factor = torch.where(has > 0, wants / has, 1)
        values = values * factor.view(-1, *[1] * (values.dim() - 1)).to(values.dtype)
    return torch.where(revived.view(-1, *[1] * (values.dim() - 1)), values, drawn)


def by_module(module: Layer, values: Tensor) -> Tensor:
    """As the module has its weight."""
    if not (isinstance(module, _ConvNd) and module.transposed):
        return values
    return torch.unflatten(values, 0, (module.groups, -1)).movedim(1, 2).flatten(0, 1)
