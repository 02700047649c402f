"""Reading files of torch.save, and saying what else a file is."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from weight_evolution.tables import first_line

from .errors import UserError

_ZIP = b"PK\x03\x04"
_BEGINNINGS = {
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "an HDF5 file, as of Keras",
    b"\x1f\x8b": "compressed by gzip",
    b"version https://git-lfs": "a Git LFS pointer in place of the file; git lfs pull fetches it",
}
"""First bytes -> what the file is."""


def load_file(path: Path, what: str, *, trust_pickle: bool = False, mmap: bool = False, advice: str = "") -> Any:
    """What a file of torch.save holds, on the CPU.

    Args:
        path: of the file.
        what: it should be, for the error message.
        trust_pickle: also load files that run code of their own while they are read.
        mmap: map it into memory where it can be; for who only reads.
        advice: for the error message, where ``trust_pickle`` would help.

    Raises:
        UserError: there is no such file, it is something else, or reading it would run code.
    """
    members = _members(path)
    if any(name.endswith("/constants.pkl") for name in members):
        raise UserError(
            f"{path} is a TorchScript file (torch.jit.save), which hides the layers of the network; save "
            "model.state_dict() of the model that was scripted or traced"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=not trust_pickle, mmap=mmap and bool(members))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception as error:  # of other bytes the unpickler raises nearly anything
        if isinstance(error, pickle.UnpicklingError) and (other := re.search(r"GLOBAL (\S+)", str(error))):
            raise UserError(
                f"{path} holds more than tensors and plain values ({other[1]}), so reading it runs code that it "
                f"names{advice}"
            ) from None
        raise UserError(f"{path} is not {what} or is damaged ({kind_of(path) or first_line(error)})") from None


def kind_of(path: Path) -> str | None:
    """What a file is by its first bytes, or None; for messages about files that are not what they should be."""
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(512)
    if not first:
        return "it is empty"
    if first.startswith(_ZIP):
        members = _members(path)
        if any(name.endswith("data.pkl") for name in members):
            return None
        return "it is a zip archive of other files" if members else f"it is cut off after {size:,} bytes"
    for beginning, kind in _BEGINNINGS.items():
        if first.startswith(beginning):
            return f"it is {kind}"
    if path.suffix != ".safetensors" and first[8:9] == b"{" and int.from_bytes(first[:8], "little") < size:
        return "it is a safetensors file; name it *.safetensors"
    return "it is a text" if _is_text(first) else None


def _members(path: Path) -> list[str]:
    """Of a zip archive, as torch.save has written since PyTorch 1.6; none of others."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (OSError, zipfile.BadZipFile, ValueError):
        return []


def _is_text(first: bytes) -> bool:
    try:
        text = first.decode()
    except UnicodeDecodeError as error:
        text = first[: error.start].decode() if error.start > len(first) - 4 else ""
    return bool(text) and all(character.isprintable() or character.isspace() for character in text)
