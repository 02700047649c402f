"""Low-rank projection of many weight tensors at once: the public function and its arguments' checks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..bank import FilterBank
from ..checks import check_integer, check_number
from ..runtime.filters import accumulate_dtype
from . import operators
from .rule import ProjectionRule


class LowRankResult(NamedTuple):
    """What a projection found, one entry per tensor given, on the weights' device."""

    energy_before: Tensor
    """float64 [L]: sum of the squared singular values of the (row-scaled) matrix."""
    energy_kept: Tensor
    """float64 [L]: sum over the r kept ones, before the transfer; `energy_before` where the layer was left alone, NaN
    where that is because its projection has elements beyond the range of its dtype."""
    skipped: Tensor
    """bool [L]: the largest singular value is under the limit, the projection is beyond the range of the dtype, or a
    weight of the call is not finite."""


class LowRankBases:
    """The singular bases that the last projection found, from which the next one starts.

    Made empty; `project_low_rank_` fills it. A layer whose shape, rank, dtype or device has changed starts anew.
    Memory: min(N, C*K) * r float32 per layer (float64 for float64 weights).
    """

    def __init__(self) -> None:
        self.tensors: dict[int, Tensor] = {}
        """By position of the layer; zeros: none yet."""

    def state_dict(self) -> dict[str, Tensor]:
        """The tensors themselves, keyed by position; loadable with ``weights_only=True``."""
        return {str(position): tensor for position, tensor in self.tensors.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copies of a `state_dict`'s tensors."""
        with torch.inference_mode(False):
            self.tensors = {int(position): tensor.clone() for position, tensor in state.items()}

    def _for(self, position: int, n: int, rank: int, like: Tensor) -> Tensor:
        tensor, dtype = self.tensors.get(position), accumulate_dtype(like)
        if tensor is None or tensor.shape != (n, rank) or tensor.dtype != dtype or tensor.device != like.device:
            with torch.inference_mode(False):  # or it could not be written to in another mode
                tensor = self.tensors[position] = torch.zeros((n, rank), dtype=dtype, device=like.device)
        return tensor


@torch.no_grad()
def project_low_rank_(
    weights: Sequence[Tensor],
    ranks: int | Sequence[int],
    row_scale: Sequence[Tensor | None] | None = None,
    *,
    filter_dim: int | Sequence[int] = 0,
    bases: LowRankBases | None = None,
    energy_transfer: bool = True,
    skip_below: float = 1e-4,
) -> LowRankResult:
    """Replace every weight, in place, by its projection onto the matrices of rank r, all layers in one call.

    A weight is seen as M = W.reshape(N, -1) = U diag(s) V^T; the r largest s stay, times sqrt(sum s^2 / sum of kept
    s^2). With a row scale a, diag(a) M is projected and row j multiplied by a_j / (a_j^2 + 1e-5) to come back.
    Source: Low-Rank Projection with Energy Transfer (arXiv 2204.05566).

    There is one implementation, on torch.linalg, for all backends and devices; its result is at most 1e-4 farther from
    M than the best, and holds its energy within 1e-5 (docs/low-rank-kernel.md says how). Forcing the backend ``torch``
    runs the reference, one singular value decomposition per layer, which neither reads nor writes ``bases``. The host
    waits for a GPU.

    Args:
        weights: tensors of 2 to 5 dimensions, float32, float64, float16 or bfloat16, any strides, all on one device.
            Computed in float32 (float64 for float64) and rounded once. A tensor given twice is projected once.
        ranks: r, one for all tensors or one each, from 1. A layer with r >= min(N, C*K) is left alone.
        row_scale: None, or for each tensor None or a, a float32 or float64 tensor [N].
        filter_dim: the dimension of the N filters, one for all tensors or one each (1 for transposed convolutions).
        bases: where the next call finds this one's singular vectors, which makes it faster if the weights have moved
            little since; the result is held to the same accuracy. One object per list of weights.
        energy_transfer: False: plain truncation.
        skip_below: a layer whose largest singular value is under it is left alone.

    Returns:
        Energies and skipped layers. If any weight or row scale is not finite (or an energy overflows float64), all are
        skipped and nothing is changed, the bases included.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, size, dtype, device or range; nothing is changed.
    """
    weights = weights if isinstance(weights, Tensor) else list(weights)
    bank = FilterBank(weights, filter_dim)
    for weight, name in zip(bank.weights, bank.names, strict=True):
        if weight.dim() < 2:
            raise ValueError(f"{name} must have 2 to 5 dimensions, to be seen as a matrix, got {weight.dim()}")
    view = bank.view()
    rank_of = _per_distinct(bank, _check_ranks(ranks, len(bank.position)), "ranks")
    scale_of = _per_distinct(bank, _check_row_scale(row_scale, bank), "row_scale")
    skip_below = check_number(skip_below, "skip_below")
    if not 0 <= skip_below < math.inf:
        raise ValueError(f"skip_below must be finite and not negative, got {skip_below}")
    if bases is not None and not isinstance(bases, LowRankBases):
        raise TypeError(f"bases must be a LowRankBases or None, got {type(bases).__name__}")
    if not bank.weights:
        empty = torch.empty(0, dtype=torch.float64, device="cpu")
        return LowRankResult(empty, empty.clone(), empty.bool())

    kept = []
    if bases is not None:
        for i, (weight, size, rank) in enumerate(zip(bank.weights, bank.sizes, rank_of, strict=True)):
            n = min(size, weight.numel() // max(size, 1))
            kept.append(bases._for(i, n, min(rank, n), weight))
    rule = ProjectionRule(rank_of, scale_of, bool(energy_transfer), skip_below)
    found = operators.project_low_rank_(view, rule, kept)
    if len(bank.position) > len(bank):
        found = [values[list(bank.position)] for values in found]
    return LowRankResult(*found)


def _check_ranks(ranks: int | Sequence[int], count: int) -> list[int]:
    given = list(ranks) if isinstance(ranks, Sequence) else [ranks] * count
    if len(given) != count:
        raise ValueError(f"ranks must be one integer or one per tensor ({count}), got {len(given)}")
    for i, rank in enumerate(given):
        name = f"ranks[{i}]" if isinstance(ranks, Sequence) else "ranks"
        given[i] = check_integer(rank, name)
        if rank < 1:
            raise ValueError(f"{name} must be at least 1, got {rank}")
    return given


def _check_row_scale(row_scale: Sequence[Tensor | None] | None, bank: FilterBank) -> list[Tensor | None]:
    count = len(bank.position)
    if row_scale is None:
        return [None] * count
    if not isinstance(row_scale, (list, tuple)):
        raise TypeError(f"row_scale must be a list, a tensor or None for each weight, got {type(row_scale).__name__}")
    if len(row_scale) != count:
        raise ValueError(f"row_scale must have one entry per tensor ({count}), got {len(row_scale)}")
    for i, scale in enumerate(row_scale):
        if scale is None:
            continue
        if not isinstance(scale, Tensor):
            raise TypeError(f"row_scale[{i}] must be a tensor or None, got {type(scale).__name__}")
        if scale.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"row_scale[{i}] must be float32 or float64, got {scale.dtype}")
        size = bank.sizes[bank.position[i]]
        if tuple(scale.shape) != (size,):
            raise ValueError(f"row_scale[{i}] must have shape ({size},), one per filter, got {tuple(scale.shape)}")
        if scale.device != bank.device:
            raise ValueError(f"row_scale[{i}] must be on {bank.device}, like the weights, got {scale.device}")
    return list(row_scale)


def _per_distinct(bank: FilterBank, values: list, name: str) -> list:  # type: ignore[type-arg]
    """One value per distinct tensor; those of a tensor given twice must agree."""
    if len(bank.position) == len(bank):
        return values
    chosen: dict[int, int] = {}
    for i, position in enumerate(bank.position):
        first = chosen.setdefault(position, i)
        if values[first] is not values[i] and (isinstance(values[i], Tensor) or values[first] != values[i]):
            raise ValueError(f"{name}[{i}] differs from {name}[{first}], but both weights are the same tensor")
    return [values[i] for i in chosen.values()]
