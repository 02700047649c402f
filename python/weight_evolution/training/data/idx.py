"""The IDX format of the MNIST family: a magic number, sizes, then unsigned bytes."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError

_UINT8 = 0x08
_MAX_BYTES = 1 << 32


def read_idx(path: Path, dims: int) -> Tensor:
    """A uint8 tensor of ``dims`` dimensions from an IDX file, plain or gzip.

    Raises:
        UserError: the file cannot be read, or is not such a file, or is cut off; says what was found.
    """
    content = _read(path)
    header = 4 + 4 * dims
    if len(content) < 4:
        raise UserError(f"{path} is not an IDX file: {len(content)} bytes")
    zero, kind, found = struct.unpack(">HBB", content[:4])
    if zero != 0 or kind != _UINT8 or found != dims:
        magic = int.from_bytes(content[:4], "big")
        raise UserError(f"{path} has magic number 0x{magic:08x}, expected 0x{_UINT8 << 8 | dims:08x} (uint8, {dims}-d)")
    if len(content) < header:
        raise UserError(f"{path} is cut off within its header ({len(content)} of {header} bytes)")
    shape = struct.unpack(f">{dims}I", content[4:header])
    expected = math.prod(shape)
    if len(content) - header != expected:
        state = "is cut off" if len(content) - header < expected else "is too long"
        raise UserError(
            f"{path} {state}: its header promises {' x '.join(map(str, shape))} = {expected} bytes, "
            f"it holds {len(content) - header}"
        )
    if expected == 0:
        raise UserError(f"{path} is empty: {' x '.join(map(str, shape))}")
    return torch.frombuffer(bytearray(content[header:]), dtype=torch.uint8).reshape(shape)


def find_idx(root: Path, stem: str) -> Path | None:
    """The file ``stem`` or ``stem.gz`` in ``root``."""
    return next((path for path in (root / stem, root / f"{stem}.gz") if path.is_file()), None)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        if packed:
            with gzip.open(path) as file:
                content = file.read(_MAX_BYTES)
        else:
            content = path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    return content
