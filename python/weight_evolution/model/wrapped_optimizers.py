"""Optimizers within optimizers: Lookahead, SAM and others hold the one that they wrap."""

from __future__ import annotations

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
