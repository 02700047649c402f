"""A Linear's bias follows its rows."""

from __future__ import annotations

import torch
from torch import Tensor

from ..model.targets import Targets
from ..sharding.meshes import Spread, placement_of


def blended_bias(bias: Tensor, norms: Tensor, donor: Tensor) -> Tensor:
    """The bias [N] with each element that has a donor blended with it, with the coefficient of the rows.

    Args:
        bias: [N], only read.
        norms: float32 [N], of the rows before the crossover, to any scale.
        donor: int32 [N], -1 for none.
    """
    source = donor.clamp(min=0).long()
    a = norms / (norms + norms[source])
    blended = (a * bias + (1 - a) * bias[source]).to(bias.dtype)
    return torch.where((donor >= 0) & blended.isfinite(), blended, bias)


def check_spread(targets: Targets, position: int, bias: Tensor) -> None:
    """That every rank has the elements of a bias that follow the rows it has, and of rows in parts all.

    Args:
        targets: the parameters that take part.
        position: of the Linear's weight among them.
        bias: perhaps a DTensor.

    Raises:
        TypeError: it is spread in another way; says what to do.
    """
    target, rows = targets.items[position], targets.placement
    name = f"{target.name.rpartition('weight')[0]}bias"
    elements = placement_of([Spread(name, bias, 0, True)])
    group = rows.group if rows is not None and rows.sharded[position] else None
    if (None if elements is None else elements.group) == group:
        return
    advice = (
        "and every rank has a part of all rows: keep the bias whole (Replicate(), RowwiseParallel)"
        if rows is not None and rows.partial[position]
        else "so shard both or none (fully_shard the module)"
    )
    raise TypeError(
        f"{name} is not spread over the ranks as {target.name} is, whose rows it follows, {advice}, or "
        f"pass exclude=[{name.rpartition('.')[0]!r}]"
    )
