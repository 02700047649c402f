"""The C++ extension as a backend: one call for a whole bank, on torch's number of threads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..layout import Layout, Segments

_import_error = ""
try:
    import we_kernels._native as _native
except ImportError as error:
    _native = None
    _import_error = str(error)

_note = Path(__file__).parents[1] / "_native_reason.txt"  # what setup.py could not build, and why
_reason = _note.read_text().strip() if _note.exists() else ""
if _native is None and _reason:
    _import_error = f"{_import_error}; {_reason}"

__all__ = ["build_info", "crossover_", "evolve_", "filter_importance", "match_filters", "unavailable"]


def unavailable(device: torch.device) -> str | None:
    """Why the extension cannot work on tensors of ``device``; None when it can."""
    if _native is None:
        return f"the native extension is not installed ({_import_error})"
    if device.type == "cpu":
        return None
    if device.type != "cuda":
        return f"it has no kernels for {device.type}"
    if not hasattr(_native, "cuda_status"):
        return f"the native extension was {_reason or 'built without CUDA'}"
    return "the native extension's CUDA kernels do not make whole evolutions yet"


def build_info() -> str:
    """Compiler, instruction set in use and CUDA architectures of the extension, or why there is none."""
    if _native is None:
        return f"not installed ({_import_error})"
    cuda = (
        f"CUDA for {_native.cuda_architectures()}"
        if hasattr(_native, "cuda_architectures")
        else _reason or "built without CUDA"
    )
    return f"{_native.compiler()}, {_native.simd()}, {cuda}"


def filter_importance(weights: Sequence[Tensor], filter_dims: Sequence[int], layout: Layout) -> Tensor:
    """float32 [F]; float64 weights are summed in float64, all others in float32."""
    importance = torch.empty(layout.num_filters)
    _native.filter_importance(
        list(map(Tensor.data_ptr, weights)),
        layout.table.data_ptr(),
        len(weights),
        importance.data_ptr(),
        layout.num_filters,
        torch.get_num_threads(),
    )
    return importance


def match_filters(
    importance: Tensor,
    segments: Segments,
    rates: Tensor,
    local_ratios: Sequence[float],
    starvation: Tensor | None,
    starvation_limit: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Donors int32 [F], thresholds float32 [G] and numbers of inferior filters int32 [L]."""
    donor = torch.empty(segments.num_filters, dtype=torch.int32)
    threshold = torch.empty(len(local_ratios))
    inferior = torch.empty(segments.num_layers, dtype=torch.int32)
    _native.match_filters(
        importance.data_ptr(),
        importance.numel(),
        segments.table.data_ptr(),
        segments.num_layers,
        rates.data_ptr(),
        local_ratios,
        0 if starvation is None else starvation.data_ptr(),
        starvation_limit,
        donor.data_ptr(),
        threshold.data_ptr(),
        inferior.data_ptr(),
        torch.get_num_threads(),
    )
    return donor, threshold, inferior


def crossover_(weights: Sequence[Tensor], filter_dims: Sequence[int], layout: Layout, donor: Tensor, rule: str) -> None:
    """In place; ``donor`` is int32 [F], entries outside [0, N) count as -1."""
    _native.crossover(
        list(map(Tensor.data_ptr, weights)),
        layout.table.data_ptr(),
        len(weights),
        donor.data_ptr(),
        donor.numel(),
        rule,
        torch.get_num_threads(),
    )


def evolve_(
    weights: Sequence[Tensor],
    filter_dims: Sequence[int],
    layout: Layout,
    rates: Tensor,
    local_ratios: Sequence[float],
    rule: str,
    starvation: Tensor | None,
    starvation_limit: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Importance, matching and crossover: donors, importances, thresholds, numbers of inferior filters."""
    donor = torch.empty(layout.num_filters, dtype=torch.int32)
    importance = torch.empty(layout.num_filters)
    threshold = torch.empty(len(local_ratios))
    inferior = torch.empty(len(weights), dtype=torch.int32)
    _native.evolve(
        list(map(Tensor.data_ptr, weights)),
        layout.table.data_ptr(),
        len(weights),
        layout.num_filters,
        rates.data_ptr(),
        local_ratios,
        rule,
        0 if starvation is None else starvation.data_ptr(),
        starvation_limit,
        donor.data_ptr(),
        importance.data_ptr(),
        threshold.data_ptr(),
        inferior.data_ptr(),
        torch.get_num_threads(),
    )
    return donor, importance, threshold, inferior
