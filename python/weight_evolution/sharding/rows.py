"""`rows_held`: which rows of a parameter a rank holds, however many dimensions of a mesh it is sharded along."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from .local_part import GATHER, is_distributed, local_part


class Rows(NamedTuple):
    """Of a parameter, those that this rank holds; of a row that other ranks hold as well, `first_copy` names one."""

    first: int
    number: int
    first_copy: bool
    """Whether no rank before this one on the parameter's mesh holds the same; True where it is no DTensor."""

    @property
    def range(self) -> slice:
        """For a tensor with an entry for each of all rows."""
        return slice(self.first, self.first + self.number)


def rows_held(name: str, tensor: Tensor, dim: int, *, whole: bool = False, instead: str = "") -> Rows:
    """Which entries of dimension ``dim`` of a tensor this rank holds, by torch.chunk's rule.

    Args:
        name: for messages.
        tensor: any; a DTensor may be sharded along every dimension of its mesh.
        dim: along which its rows lie.
        whole: refuse it where a rank has only parts of rows.
        instead: what to do with a tensor that is refused, for messages; to exclude it when left out.

    Raises:
        TypeError: the tensor is placed in a way that cannot be worked with; says how to go on.
        ValueError: this rank does not hold what torch.chunk would give it.
    """
    if not is_distributed(tensor):
        return Rows(0, tensor.shape[dim], True)
    instead = instead or f"leave it out with exclude=[{name!r}]"
    distributed: Any = tensor
    mesh, local = distributed.device_mesh, local_part(tensor.detach())
    shape, first, first_copy = list(tensor.shape), 0, True
    for kind, ranks, own in zip(distributed.placements, mesh.shape, mesh.get_coordinate(), strict=True):
        if kind.is_replicate():
            first_copy = first_copy and own == 0
            continue
        if type(kind).__name__ != "Shard" or (whole and kind.dim != dim and ranks > 1):
            raise TypeError(
                f"{name} is a DTensor placed as {kind}"
                + (", of which no rank has whole filters" if whole else "")
                + f"; place it as Shard({dim}) or Replicate() (shard_placement_fn= and ignored_params= of "
                f"fully_shard), {instead}, or {GATHER}"
            )
        chunk = -(-shape[kind.dim] // ranks)
        before = min(own * chunk, shape[kind.dim])
        first += before if kind.dim == dim else 0
        shape[kind.dim] = min(chunk, shape[kind.dim] - before)
    if local.shape != tuple(shape):
        raise ValueError(
            f"{name}: this rank holds a part of shape {tuple(local.shape)}, where torch.chunk gives it {tuple(shape)}; "
            "shard it with fully_shard or distribute_tensor"
        )
    if local.device.type not in (mesh.device_type, "meta"):
        raise TypeError(
            f"{name} is offloaded to the CPU (CPUOffloadPolicy), where its group on {mesh.device_type} cannot exchange "
            f"it; leave offload_policy= out, or {instead}"
        )
    return Rows(first, shape[dim], first_copy)
