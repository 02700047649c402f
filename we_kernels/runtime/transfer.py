"""Small tables on their way to a device: from pinned memory, not waited for, copied again only when a value changed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from threading import Lock
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

MAX_UPLOADS = 64

T = TypeVar("T")

_uploads: dict[tuple[object, ...], Tensor] = {}
_lock = Lock()
_captured: set[object] = set()
_HERE = nullcontext()


class Place(NamedTuple):
    """Where the kernels of one call go. Two streams never share memory that one of them writes."""

    device: torch.device
    stream: int
    """Handle of the device's current stream; 0 on a CPU."""
    capturing: bool
    """That stream is recording a CUDA graph."""

    @classmethod
    def current(cls, device: torch.device) -> Place:
        """Asked once per call, because every question costs the host time."""
        if device.type != "cuda":
            return cls(device, 0, False)
        with on(device):
            stream = torch.cuda.current_stream(device).cuda_stream
            return cls(device, stream, torch.cuda.is_current_stream_capturing())


def is_capturing(device: torch.device) -> bool:
    """Whether the current stream of a device is recording a CUDA graph."""
    return Place.current(device).capturing


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Makes a GPU the current one, if it is not: kernels run on the stream that is current there."""
    here = device.type != "cuda" or torch.cuda.current_device() == device.index
    return _HERE if here else torch.cuda.device(device)


class Owner(Protocol):
    """What device tables are made of, and kept with: a `Layout`, a `Segments`."""

    tables: dict[tuple[object, ...], Any]


def table_of(owner: Owner, name: str, place: Place, make: Callable[[], T]) -> T:
    """A table that depends on ``owner`` alone, made once per device.

    What a graph has seen is never freed: while one is recorded, the owner is kept.

    Raises:
        RuntimeError: a graph is being recorded, and the table is not there yet.
    """
    key = name, place.device
    table: T | None = owner.tables.get(key)
    if table is None:
        refuse_capture(place)
        table = owner.tables[key] = make()
    if place.capturing:
        _captured.add(owner)
    return table


def per_stream(owner: Owner, name: str, place: Place, make: Callable[[], T]) -> T:
    """Scratch memory for a call, used again by the next on the same stream; while a graph is recorded, its own."""
    if place.capturing:
        return make()
    key = name, place.device, place.stream
    found: T | None = owner.tables.get(key)
    if found is None:
        found = owner.tables[key] = make()
    return found


def keep_for_graph(owner: object, place: Place) -> None:
    """What a graph has seen is never freed: ``owner`` stays, if one is being recorded."""
    if place.capturing:
        _captured.add(owner)


def refuse_capture(place: Place) -> None:
    """For what must not be done while a graph is recorded.

    Raises:
        RuntimeError: one is.
    """
    if place.capturing:
        raise RuntimeError(
            "a table that the kernels read is not on the device yet; call the function once with the same bank "
            "and options before capturing it in a CUDA graph (a rate that changes: as a float64 tensor)"
        )


def upload(values: tuple[int, ...] | tuple[float, ...], dtype: torch.dtype, place: Place) -> Tensor:
    """``values`` on the device, only to be read; copied when this stream has not seen them yet.

    Raises:
        RuntimeError: a graph is being captured and the values are new: the copy would run at every replay, from host
            memory that is gone by then.
    """
    key = (values, dtype, place.device, place.stream)
    with _lock:
        if place.capturing:
            for (*known, _), table in _uploads.items():
                if known == [values, dtype, place.device]:
                    _captured.add(table)
                    return table
            refuse_capture(place)
        found = _uploads.get(key)  # once: hashing the addresses of many layers takes a microsecond
        if found is None:
            if len(_uploads) >= MAX_UPLOADS:
                del _uploads[next(iter(_uploads))]
            found = _uploads[key] = to_device(values, dtype, place.device)
        return found


def to_device(values: tuple[int, ...] | tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A new tensor on ``device``. Pinned memory and non_blocking: the host does not wait for a GPU."""
    return _pinned(values, dtype, device).to(device, non_blocking=True)


def table_to_device(table: Tensor, device: torch.device) -> Tensor:
    """`to_device` of a CPU tensor; of one that is on ``device``, itself."""
    if device.type != "cuda":
        return table.to(device)
    return table.pin_memory().to(device, non_blocking=True)


def send_(target: Tensor, values: tuple[int, ...] | tuple[float, ...]) -> None:
    """`to_device` into a tensor that is there already."""
    target.copy_(_pinned(values, target.dtype, target.device), non_blocking=True)


def _pinned(values: tuple[int, ...] | tuple[float, ...], dtype: torch.dtype, target: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device="cpu", pin_memory=target.type == "cuda")


class Readback:
    """The values of a small tensor, on their way to the host; nothing waits until they are asked for."""

    def __init__(self, source: Tensor) -> None:
        self._copied: torch.cuda.Event | None = None
        if source.device.type != "cuda":
            self._host = source
            return
        self._host = torch.empty(source.shape, dtype=source.dtype, device="cpu", pin_memory=True)
        with torch.cuda.device(source.device):
            self._host.copy_(source, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()

    @property
    def arrived(self) -> bool:
        """Whether `values` would return at once."""
        return self._copied is None or self._copied.query()

    def values(self) -> list[float]:
        """Waits for the work that was queued before the readback, not for what came after."""
        if self._copied is not None:
            self._copied.synchronize()
        values: list[float] = self._host.tolist()
        return values
