"""What the CUDA kernels read besides weights, on the device, and scratch memory.

Tables of a layout are copied once per device. Tables of changing values (addresses, ratios) are cached by those
values, so they are copied again only when a parameter moved. Those and the scratch are kept per stream: two streams
never share memory that one of them writes. What a captured CUDA graph has seen is never freed.
"""

from __future__ import annotations

from threading import Lock
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ...layout import Layout, Segments
from .extension import module

MAX_UPLOADS = 64

_layers: WeakKeyDictionary[Layout, dict[torch.device, Tensor]] = WeakKeyDictionary()
_plans: WeakKeyDictionary[Segments, dict[tuple[torch.device, int], Tensor]] = WeakKeyDictionary()
_scratch: WeakKeyDictionary[Segments, dict[tuple[torch.device, int], Tensor]] = WeakKeyDictionary()
_uploads: dict[tuple[tuple[float, ...], torch.dtype, torch.device, int], Tensor] = {}
_captured: set[Tensor] = set()
_lock = Lock()


class Place(NamedTuple):
    """Where the kernels of one call run."""

    device: torch.device
    device_index: int
    stream: int
    """Handle of torch's current stream on the device."""
    capturing: bool
    """A CUDA graph is being captured on it."""


guard = torch.cuda.device
"""Context in which a device is torch's current one."""


def place(device: torch.device) -> Place:
    """The current stream of the device that `guard` has made current."""
    stream = torch.cuda.current_stream()
    return Place(device, stream.device_index, stream.cuda_stream, torch.cuda.is_current_stream_capturing())


def layers(layout: Layout, where: Place) -> Tensor:
    """int64 [L, 14]: `Layout.table` on the device."""
    cache = _layers.setdefault(layout, {})
    if where.device not in cache:
        _refuse_capture(where)
        cache[where.device] = layout.table.to(where.device)
    return _keep(cache[where.device], where)


def plan(segments: Segments, groups: int, where: Place) -> Tensor:
    """int32: where the filters of layers and groups are (csrc/cuda/plan.h)."""
    cache = _plans.setdefault(segments, {})
    key = (where.device, groups)
    if key not in cache:
        _refuse_capture(where)
        source = segments.table.data_ptr(), segments.num_layers, groups
        table = torch.empty(module.cuda_plan_size(*source), dtype=torch.int32, device="cpu")
        module.cuda_make_plan(*source, (table.data_ptr(), table.nbytes))
        cache[key] = table.to(where.device)
    return _keep(cache[key], where)


def scratch(segments: Segments, where: Place) -> Tensor:
    """int32 for one call, reused by the next on the same stream; under capture it belongs to the graph."""
    if where.capturing:
        return _new_scratch(segments, where.device)
    cache = _scratch.setdefault(segments, {})
    key = (where.device, where.stream)
    if key not in cache:
        cache[key] = _new_scratch(segments, where.device)
    return cache[key]


def upload(values: tuple[int, ...] | tuple[float, ...], dtype: torch.dtype, where: Place) -> Tensor:
    """``values`` on the device; copied, without waiting, when this stream has not seen them yet.

    Raises:
        RuntimeError: a graph is being captured and the values are new: the copy would run at every replay, from host
            memory that is gone by then.
    """
    with _lock:
        if where.capturing:
            for (*key, _), table in _uploads.items():
                if key == [values, dtype, where.device]:
                    return _keep(table, where)
            _refuse_capture(where)
        own = (values, dtype, where.device, where.stream)
        if own not in _uploads:
            if len(_uploads) >= MAX_UPLOADS:
                del _uploads[next(iter(_uploads))]
            pinned = torch.tensor(values, dtype=dtype, device="cpu", pin_memory=where.device.type == "cuda")
            _uploads[own] = pinned.to(where.device, non_blocking=True)
        return _uploads[own]


def _new_scratch(segments: Segments, device: torch.device) -> Tensor:
    size = module.cuda_scratch_size(segments.num_layers, segments.num_filters)
    return torch.empty(size, dtype=torch.int32, device=device)


def _keep(table: Tensor, where: Place) -> Tensor:
    """``table``, for good if a graph that is being captured reads it."""
    if where.capturing:
        _captured.add(table)
    return table


def _refuse_capture(where: Place) -> None:
    if where.capturing:
        raise RuntimeError(
            "the bank's tables are not on the device yet; call the function once with this bank and these options "
            "before capturing it in a CUDA graph"
        )
