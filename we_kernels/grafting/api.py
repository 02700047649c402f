"""Filter grafting of many weight tensors at once: the public functions and their arguments' checks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from operator import attrgetter
from typing import Literal

import torch
from torch import Tensor

from ..bank import FilterBank
from ..checks import check_choice, check_integer, check_vector
from ..errors import NonFiniteWeightError
from ..evolution import filter_importance
from ..runtime.memory import check_overlap
from . import operators

MAX_BINS = 256

Per = Literal["tensor", "filter"]


@torch.no_grad()
def weight_entropy(bank: FilterBank, bins: int = 10, *, per: Per = "tensor", check_finite: bool = True) -> Tensor:
    """Entropy of the histogram of every tensor's (or filter's) elements, float32 [L] (or [F]), in nats.

    The B bins are of equal width from the minimum to the maximum: edge k is min + k * ((max - min) / B) and bin k holds
    the elements x with edge k <= x < edge k+1, computed in float32 (float64 for float64 weights), each operation
    rounded. The maximum falls in no bin, unless the last edge was rounded to above it. H = -sum_k p_k ln p_k with
    p_k = count / number of elements; a constant or empty tensor has H = 0. All backends give the same counts.
    Source: Filter Grafting (arXiv 2001.05868), section 3.3, and its released program.

    Args:
        bank: the weights; L counts its distinct tensors.
        bins: B, from 1 to 256.
        per: one entropy per "tensor" or per "filter".
        check_finite: raise when an element is NaN or infinite, which waits for a GPU (and is not done while
            torch.compile traces). Without it, the entropy of such a tensor is NaN.

    Raises:
        TypeError, ValueError: an argument of the wrong kind or range.
        NonFiniteWeightError: names the tensors with an element that is not finite.
    """
    view = bank.view()
    bins = check_integer(bins, "bins")
    if not 1 <= bins <= MAX_BINS:
        raise ValueError(f"bins must be from 1 to {MAX_BINS}, got {bins}")
    per_filter = _check_per(per)
    if not bank.weights:
        return torch.empty(0, dtype=torch.float32, device="cpu")
    entropy: Tensor = operators.weight_entropy(view, bins, per_filter)
    if check_finite and not torch.compiler.is_compiling():
        _check_finite(bank, entropy, per_filter)
    return entropy


@torch.no_grad()
def weight_l1(bank: FilterBank, *, per: Per = "tensor", check_finite: bool = True) -> Tensor:
    """L1 norm of every tensor (or filter), float32 [L] (or [F]): the alternative to `weight_entropy`.

    `filter_importance` times the number of kernels; those are added in float64 for a tensor.

    Raises:
        ValueError: ``per`` is neither "tensor" nor "filter".
        NonFiniteWeightError: names the tensors with an element that is not finite (or a norm that overflows float32);
            as in `weight_entropy`.
    """
    per_filter = _check_per(per)
    norms = filter_importance(bank)
    if not bank.weights:
        return norms
    layout = bank.view().layout
    norms = norms.double() * layout.channels_on(bank.device)
    if not per_filter:
        # Consecutive filters; `segment_reduce` adds them in a fixed order, and unsafe=True keeps it from waiting.
        lengths = layout.segments.table_on(bank.device)[:, 0]
        norms = torch.segment_reduce(norms, "sum", lengths=lengths, unsafe=True)
    norms = norms.float()
    if check_finite and not torch.compiler.is_compiling():
        _check_finite(bank, norms, per_filter)
    return norms


@torch.no_grad()
def blend_(bank: FilterBank, other: FilterBank, coefficient: Tensor, *, per: Per | None = None) -> None:
    """W <- c W + (1 - c) O for every tensor, in place.

    Computed as written, without fused operations, in float32 (float64 for float64 weights), and rounded once.
    Source: Filter Grafting (arXiv 2001.05868), equation 4.

    Args:
        bank: the weights W to change.
        other: O, a bank of the same shapes, dtypes and filter dimensions on the same device, of any strides, that
            shares no memory with ``bank``.
        coefficient: c, float32 [L] for one per tensor or [F] for one per filter, on the weights' device. It must be
            finite, which is checked on a CPU only: on a GPU it would mean waiting for it.
        per: "tensor" or "filter" says which of the two it is; None: its size does.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, size, dtype or device; nothing is changed.
    """
    _check_banks([bank, other], ["bank", "other"])
    per_filter = _check_coefficient(coefficient, "coefficient", bank, per)
    if bank.weights:
        operators.blend_(bank.view(), other.weights, coefficient, per_filter)


@torch.no_grad()
def blend_ring_(
    banks: Sequence[FilterBank], coefficients: Tensor | Sequence[Tensor], *, per: Per | None = None
) -> None:
    """Bank i becomes c_i W_i + (1 - c_i) W_(i-1), bank 0 with the last one's W, in place and all at once.

    Every new value comes from the values before the call. One pass reads and writes every element once; no network is
    copied. Arithmetic as in `blend_`.

    Args:
        banks: K >= 2 banks of the same shapes, dtypes and filter dimensions on one device, that share no memory.
        coefficients: c, float32 [K, L] or [K, F], or a list of K tensors [L] or [F]; as in `blend_`.
        per: as in `blend_`.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, size, dtype or device; nothing is changed.
    """
    banks = list(banks)
    if len(banks) < 2:
        raise ValueError(f"banks must hold at least 2 banks, got {len(banks)}")
    _check_banks(banks, [f"banks[{i}]" for i in range(len(banks))])
    rows = list(coefficients)
    if len(rows) != len(banks):
        raise ValueError(f"coefficients must have one row per bank ({len(banks)}), got {len(rows)}")
    kinds = {_check_coefficient(row, f"coefficients[{i}]", banks[0], per) for i, row in enumerate(rows)}
    if len(kinds) > 1:
        raise ValueError("coefficients must be all per tensor or all per filter")
    if not banks[0].weights:
        return
    stacked = coefficients if isinstance(coefficients, Tensor) else torch.stack(rows)
    weights = [weight for bank in banks for weight in bank.weights]
    operators.blend_ring_(weights, banks[0].filter_dims, stacked, kinds.pop())


def _check_per(per: str) -> bool:
    return check_choice(per, "per", ("tensor", "filter")) == "filter"


def _check_finite(bank: FilterBank, values: Tensor, per_filter: bool) -> None:
    bad = ~values.isfinite()
    if not bool(bad.any()):
        return
    parts = bank.split(bad) if per_filter else bad.unbind()
    names = [name for name, part in zip(bank.names, parts, strict=True) if bool(part.any())]
    raise NonFiniteWeightError(f"not finite: {', '.join(names)}")


def _check_coefficient(coefficient: Tensor, name: str, bank: FilterBank, per: str | None) -> bool:
    """Whether it is per filter."""
    layers, filters = len(bank), bank.num_filters
    if per is not None:
        per_filter = _check_per(per)
    elif layers == filters and any(size != 1 for size in bank.sizes):
        raise ValueError(f'the bank has as many tensors as filters ({layers}); say per="tensor" or per="filter"')
    else:
        per_filter = isinstance(coefficient, Tensor) and tuple(coefficient.shape) == (filters,)
        if isinstance(coefficient, Tensor) and tuple(coefficient.shape) not in ((filters,), (layers,)):
            raise ValueError(
                f"{name} must have shape ({layers},), per tensor, or ({filters},), per filter, "
                f"got {tuple(coefficient.shape)}"
            )
    check_vector(coefficient, name, filters if per_filter else layers, torch.float32, bank.device)
    if bank.device.type == "cpu" and not torch.compiler.is_compiling() and not bool(coefficient.isfinite().all()):
        raise ValueError(f"{name} must be finite, got {coefficient[~coefficient.isfinite()][0].item()}")
    return per_filter


def _check_banks(banks: Sequence[FilterBank], names: Sequence[str]) -> None:
    """Equal structure, and no memory in common."""
    for bank, name in zip(banks, names, strict=True):
        if not isinstance(bank, FilterBank):
            raise TypeError(f"{name} must be a FilterBank, got {type(bank).__name__}")
        bank.check()
    first = _structure(banks[0])
    for bank, name in zip(banks[1:], names[1:], strict=True):
        if _structure(bank) != first:
            raise ValueError(f"{name} differs from {names[0]}: {_difference(banks[0], bank)}")
    if not torch.compiler.is_compiling():
        _check_separate(banks, names)


def _structure(bank: FilterBank) -> tuple[object, ...]:
    shapes, dtypes = (tuple(map(attrgetter(name), bank.weights)) for name in ("shape", "dtype"))
    return shapes, dtypes, bank.filter_dims, bank.device


def _difference(a: FilterBank, b: FilterBank) -> str:
    if len(a) != len(b):
        return f"{len(b)} distinct tensors, not {len(a)}"
    if a.device != b.device:
        return f"it is on {b.device}, not on {a.device}"
    parts = zip(a.weights, b.weights, a.filter_dims, b.filter_dims, b.names, strict=True)
    for weight, other, dim, other_dim, name in parts:
        if weight.shape != other.shape:
            return f"{name} has shape {tuple(other.shape)}, not {tuple(weight.shape)}"
        if weight.dtype != other.dtype:
            return f"{name} is {other.dtype}, not {weight.dtype}"
        if dim != other_dim:
            return f"{name} has filter_dim {other_dim}, not {dim}"
    raise AssertionError("the banks are equal")


def _check_separate(banks: Sequence[FilterBank], names: Sequence[str]) -> None:
    """Tensors of different banks must not share elements. Each bank has made sure of its own."""
    spans = []
    for bank in banks:
        view = bank.view()
        spans += [(start, start + size) for start, size in zip(view.addresses, view.layout.extents, strict=True)]
    spans.sort()
    if all(end <= start for (_, end), (start, _) in pairwise(spans)):
        return
    weights = [weight for bank in banks for weight in bank.weights]
    labels = [f"{weight} of {name}" for bank, name in zip(banks, names, strict=True) for weight in bank.names]
    check_overlap(weights, labels)
