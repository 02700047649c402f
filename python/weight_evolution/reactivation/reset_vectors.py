"""The vectors of `UnitAdamW`'s resets where a parameter's rows are spread over ranks (DTensors)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..sharding.local_part import is_distributed
from ..sharding.rows import Rows, rows_held

INSTEAD = "use torch.optim.AdamW"


def held_rows(parameter: Tensor, name: str = "the parameter") -> Rows:
    """Which rows of a parameter this rank holds; all of one that is not spread, or has no dimension.

    Raises:
        TypeError, ValueError: it is spread in another way than by rows; names it, and says what to do.
    """
    if not is_distributed(parameter) or parameter.dim() == 0:
        return Rows(0, (*parameter.shape, 1)[0], True)
    return rows_held(name, parameter, 0, whole=True, instead=INSTEAD)


def row_vector(parameter: Tensor) -> Tensor:
    """float32 [D0] of zeros on the parameter's device, spread as it is."""
    held = held_rows(parameter)
    return _spread(torch.zeros(held.number, dtype=torch.float32, device=parameter.device), parameter)


def spread_rows(vector: Tensor, parameter: Tensor) -> Tensor:
    """A vector with one entry for each row, as float32 on the parameter's device and spread as it is."""
    vector = vector.to(device=parameter.device, dtype=torch.float32)
    if is_distributed(vector) or not is_distributed(parameter):
        return vector
    return _spread(vector[held_rows(parameter).range].clone(), parameter)


def by_row(columns: Tensor, groups: int, parameter: Tensor) -> Tensor:
    """[rows here, D1]: of each row that this rank holds the entries of its group's columns.

    Args:
        columns: [groups * D1], of all groups.
        groups: equal parts of all rows.
        parameter: [D0, D1, ...].
    """
    held, of_groups = held_rows(parameter), columns.view(groups, -1)
    rows = torch.arange(held.first, held.first + held.number, device=columns.device)
    return of_groups[rows // ((*parameter.shape, 1)[0] // groups)]


def _spread(own: Tensor, parameter: Tensor) -> Tensor:
    """This rank's entries of a vector of rows as a DTensor, if the parameter is one."""
    if not is_distributed(parameter):
        return own
    from torch.distributed.tensor import DTensor, Replicate

    distributed: Any = parameter
    # Along a dimension of one rank the parameter may be sharded in any way.
    placements = [kind if kind.is_shard(0) else Replicate() for kind in distributed.placements]
    rows = torch.Size((*parameter.shape, 1)[:1])
    return DTensor.from_local(own, distributed.device_mesh, placements, run_check=False, shape=rows, stride=(1,))
