"""Norms and values of new incoming weights that the kernel does not make itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.modules.conv import _ConvNd

import we_kernels as wk

from ..model.seeds import seeded
from ..model.targets import by_output
from ..model.unit_graph import UnitLayer
from ..model.unit_weights import Layer
from ..model.writing import overwrite_
from .network_units import NetworkUnits

Init = Callable[[Tensor], object]
"""Fills a tensor of a weight's shape, like the functions of torch.nn.init."""


def donor_norms(units: NetworkUnits, plan: wk.UnitPlan, revived: Tensor, scores: Tensor) -> Tensor:
    """float32 [plan.entries], for `we_kernels.reactivate_`: for each revived unit the L1 norm of its donor.

    Forward matching within a layer: the unit of the lowest score has the living one of the highest, and so on, from the
    start again where living ones are fewer. Source: Lin et al. (arXiv 2110.04492).
    """
    targets = torch.zeros(plan.entries, device=plan.device)
    parts = zip(*(x.split(units.sizes) for x in (revived, scores, units.incoming_norms())), units.drawn, strict=True)
    for mask, score, norms, (item, axis) in parts:
        lowest = score.where(mask, torch.inf).argsort(stable=True)
        highest = score.where(~mask, -torch.inf).argsort(descending=True, stable=True)
        living = (~mask).sum()
        order = torch.arange(len(mask), device=mask.device) % living.clamp(min=1)
        donors = torch.empty_like(norms)
        donors[lowest] = norms[highest[order]]
        start = plan.start(item, axis)
        targets[start : start + len(mask)] = torch.where(mask & (living > 0), donors, 0)
    return targets


def draw_(layer: UnitLayer, revived: Tensor, init: Init, seed: int, rescale: bool) -> None:
    """Other random values for revived units that were just drawn; their elements of 0 (outgoing ones) stay.

    Args:
        layer: of the units.
        revived: bool [units].
        init: makes the values.
        seed: of the generator that it draws from.
        rescale: give each unit the L1 norm that it has.
    """
    weight = layer.module.weight.detach()
    fresh = torch.empty_like(weight)
    with seeded(weight.device, seed):
        init(fresh)
    drawn, values = by_output(layer.module, weight), by_output(layer.module, fresh)
    values = values.where(drawn != 0, 0)
    if rescale:
        has, wants = (x.flatten(1).float().norm(1, 1) for x in (values, drawn))
        factor = torch.where(has > 0, wants / has, 1)
        values = values * factor.view(-1, *[1] * (values.dim() - 1)).to(values.dtype)
    chosen = revived.view(-1, *[1] * (values.dim() - 1))
    overwrite_(weight, _by_module(layer.module, torch.where(chosen, values, drawn)))


def _by_module(module: Layer, values: Tensor) -> Tensor:
    """As the module has its weight."""
    if not (isinstance(module, _ConvNd) and module.transposed):
        return values
    return torch.unflatten(values, 0, (module.groups, -1)).movedim(1, 2).flatten(0, 1)
