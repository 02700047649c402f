"""The Triton kernels as a backend: CUDA tensors, or CPU tensors under Triton's interpreter (for tests).

A whole evolution takes three launches, whatever the number of layers: importance, matching, crossover (importance
and crossover once more for every further dtype in the bank). Counting bins takes two launches and two fills, or one
launch per filter; blending networks one; each once more for every further dtype. Nothing waits for the device.
Importing this module imports no Triton; the operators do.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

from ...layout import Layout, Segments

__all__ = [
    "asynchronous_sgd_",
    "blend_",
    "count_bins",
    "crossover_",
    "evolve_",
    "filter_importance",
    "filter_overlap",
    "match_filters",
    "restore_unselected_",
    "save_unselected_",
    "select_filters",
    "unavailable",
]


def unavailable(device: torch.device) -> str | None:
    """Why Triton cannot work on tensors of ``device``; None when it can. Creates no CUDA context."""
    if not _installed():
        return "Triton is not installed; pip install 'weight-evolution[triton]'"
    interpreted = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")
    if device.type == "cpu":
        return None if interpreted else "set TRITON_INTERPRET=1 before Triton is imported (slow, for tests)"
    if device.type != "cuda":
        return f"it works on cuda tensors, not on {device.type}"
    if interpreted:
        return "TRITON_INTERPRET is set, the interpreter works on cpu tensors; unset it"
    return None if torch.cuda.is_available() else "torch.cuda.is_available() is False; needs a GPU and a CUDA torch"


def _installed() -> bool:
    try:
        return find_spec("triton") is not None
    except ImportError:  # an import hook that blocks it
        return False


def filter_importance(weights: Sequence[Tensor], filter_dims: Sequence[int], layout: Layout) -> Tensor:
    """float32 [F]; float64 weights are summed in float64, all others in float32."""
    from . import operators

    return operators.filter_importance(weights, layout)


def match_filters(
    importance: Tensor,
    segments: Segments,
    rates: Tensor,
    local_ratios: Sequence[float],
    starvation: Tensor | None,
    starvation_limit: float,
    zero_is_inferior: Sequence[bool] = (),
) -> tuple[Tensor, Tensor, Tensor]:
    """Donors int32 [F], thresholds float32 [G] and numbers of inferior filters int32 [L]."""
    from . import operators

    return operators.match_filters(
        importance, segments, rates, local_ratios, starvation, starvation_limit, zero_is_inferior
    )


def crossover_(weights: Sequence[Tensor], filter_dims: Sequence[int], layout: Layout, donor: Tensor, rule: str) -> None:
    """In place; ``donor`` is int32 [F]. An element whose new value would not be finite keeps its value."""
    from . import operators

    operators.crossover_(weights, layout, donor, rule)


def evolve_(
    weights: Sequence[Tensor],
    filter_dims: Sequence[int],
    layout: Layout,
    rates: Tensor,
    local_ratios: Sequence[float],
    rule: str,
    starvation: Tensor | None,
    starvation_limit: float,
    zero_is_inferior: Sequence[bool] = (),
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Importance, matching and crossover: donors, importances, thresholds, numbers of inferior filters."""
    from . import operators

    return operators.evolve_(weights, layout, rates, local_ratios, rule, starvation, starvation_limit, zero_is_inferior)


def filter_overlap(weights: Sequence[Tensor], filter_dims: Sequence[int], layout: Layout) -> tuple[Tensor, Tensor]:
    """Mean over the pairs of each layer, float32 [L], and each filter's maximum, float32 [F]."""
    from . import overlap_launch

    return overlap_launch.filter_overlap(weights, layout)


def select_filters(segments: Segments, rate: Tensor, seed: int, step: Tensor, replacement: bool) -> Tensor:
    """bool [F]."""
    from . import asynchronous

    return asynchronous.select_filters(segments, rate, seed, step, replacement)


def save_unselected_(
    weights: Sequence[Tensor], filter_dims: Sequence[int], layout: Layout, selected: Tensor, buffer: Tensor
) -> None:
    """Filters that are not selected go to their places in ``buffer``."""
    from . import asynchronous

    asynchronous.copy_unselected(weights, layout, selected, buffer, restore=False)


def restore_unselected_(
    weights: Sequence[Tensor], filter_dims: Sequence[int], layout: Layout, selected: Tensor, buffer: Tensor
) -> None:
    """And come back."""
    from . import asynchronous

    asynchronous.copy_unselected(weights, layout, selected, buffer, restore=True)


def asynchronous_sgd_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor],
    filter_dims: Sequence[int],
    selected: Tensor,
    lr: Tensor,
    momentum: float,
    dampening: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
    first_steps: Sequence[bool],
) -> None:
    """One launch per dtype; rounds as PyTorch's foreach kernels do on CUDA."""
    from . import asynchronous

    asynchronous.asynchronous_sgd_(
        params,
        grads,
        momentum_buffers,
        filter_dims,
        selected,
        lr,
        momentum,
        dampening,
        weight_decay,
        nesterov,
        maximize,
        first_steps,
    )


def count_bins(
    weights: Sequence[Tensor], filter_dims: Sequence[int], layout: Layout, bins: int, per_filter: bool
) -> Tensor:
    """int64 [F, bins] or [L, bins]: elements of every filter or tensor in each bin; -1: one is not finite."""
    from . import grafting

    return grafting.count_bins(weights, layout, bins, per_filter)


def blend_(
    networks: Sequence[Sequence[Tensor]],
    filter_dims: Sequence[int],
    layouts: Sequence[Layout],
    coefficients: Tensor,
    per_filter: bool,
) -> None:
    """W_k <- c_k W_k + (1 - c_k) W_(k-1), in place, for the first ``len(c)`` networks; c is
    float32 [written, F or L]."""
    from . import grafting

    grafting.blend_(networks, layouts, coefficients, per_filter)
