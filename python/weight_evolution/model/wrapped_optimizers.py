"""Optimizers within optimizers: Lookahead, SAM, accelerate's and others hold the one that they wrap."""

from __future__ import annotations

import sys

from torch import Tensor
from torch.optim import Optimizer


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """All that an optimizer trains, in the order of its groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def wrapped_optimizers(optimizer: Optimizer) -> list[Optimizer]:
    """Other optimizers of the same parameters that an optimizer holds as attributes, at any depth."""
    own = set(map(id, parameters_of(optimizer)))
    found = [optimizer]
    for outer in found:
        for held in vars(outer).values():
            known = any(held is other for other in found)
            if isinstance(held, Optimizer) and not known and own & set(map(id, parameters_of(held))):
                found.append(held)
    return found[1:]


def without_accelerate(optimizer: Optimizer) -> Optimizer:
    """The optimizer that accelerate's ``AcceleratedOptimizer`` hands its steps on to, where this is one.

    Of all wrappers it alone adds nothing to a step (it leaves out those of accumulated gradients), and runs no hooks.
    It is recognized by its class, which others derive from that do more.
    """
    cls = getattr(sys.modules.get("accelerate.optimizer"), "AcceleratedOptimizer", None)
    while type(optimizer) is cls:
        optimizer = vars(optimizer)["optimizer"]
    return optimizer
