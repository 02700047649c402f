"""Weights in files: torch.save, safetensors, Lightning and Hugging Face."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..tables import first_line
from ..training.errors import UserError, needed

_IN_FOLDERS = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "diffusion_pytorch_model.safetensors",
)
_INSIDE = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "module",
    "weights",
    "ema",
    "params",
)
"""Under which of its keys a checkpoint has the weights, by habit."""


@dataclass(frozen=True)
class Saved:
    """What a file holds: a state dict or a whole module, and what kind of file it was."""

    content: dict[str, Tensor] | nn.Module
    kind: str


def read_weights(path: Path, trust_pickle: bool = False) -> Saved:
    """The weights of a file or folder, on the CPU.

    Args:
        path: of torch.save (a state dict, or a dict that has one, such as Lightning's; a whole module with
            ``trust_pickle``), safetensors, or a folder that holds one of them under Hugging Face's names.
        trust_pickle: also load files that run code of their own while they are read.

    Raises:
        UserError: says what is there instead.
    """
    if path.is_dir():
        return _read_folder(path, trust_pickle)
    if path.name.endswith(".index.json"):
        return _read_shards(path, trust_pickle)
    if path.suffix == ".safetensors":
        return Saved(_read_safetensors(path), "safetensors")
    return saved_of(path, read_torch(path, trust_pickle))


def is_torch_file(path: Path) -> bool:
    """Whether `read_weights` takes it for a file of torch.save."""
    return path.is_file() and path.suffix != ".safetensors" and not path.name.endswith(".index.json")


def _read_folder(folder: Path, trust_pickle: bool) -> Saved:
    found = next((path for name in _IN_FOLDERS if (path := folder / name).is_file()), None)
    if found is None:
        checkpoints = sorted(folder.glob("*.ckpt")) + sorted(folder.glob("checkpoints/*.ckpt"))
        if not checkpoints:
            raise UserError(f"{folder} holds none of {', '.join(_IN_FOLDERS)} and no *.ckpt; name a file")
        found = max(checkpoints, key=lambda path: path.stat().st_mtime)
    saved = read_weights(found, trust_pickle)
    return Saved(saved.content, f"{saved.kind}, {found.name}")


def _read_shards(index: Path, trust_pickle: bool) -> Saved:
    try:
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{index} is no index of sharded weights ({error!r})") from None
    together: dict[str, Tensor] = {}
    for name in files:
        if Path(name).name != name:
            raise UserError(f"{index} names a file outside of its folder: {name}")
        content = read_weights(index.parent / name, trust_pickle).content
        if isinstance(content, nn.Module):
            raise UserError(f"{index.parent / name} holds a module, not a part of the weights")
        together |= content
    return Saved(together, f"{len(files)} shards")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    safetensors = needed("safetensors.torch", f"reading {path}", "inspect")
    try:
        state: dict[str, Tensor] = safetensors.load_file(path)
        return state
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception as error:  # SafetensorError, which is not exported everywhere
        raise UserError(f"{path} is not a safetensors file or is damaged ({error})") from None


def read_torch(path: Path, trust_pickle: bool) -> Any:
    """What a file of torch.save holds, on the CPU, mapped into memory where it can be.

    Raises:
        UserError: it is no such file, or reading it would run code.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=not trust_pickle, mmap=_is_zip(path))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception as error:  # of other bytes the unpickler raises nearly anything
        if isinstance(error, pickle.UnpicklingError) and (other := re.search(r"GLOBAL (\S+)", str(error))):
            raise UserError(
                f"{path} holds more than tensors and plain values ({other[1]}), so reading it runs code that it names. "
                "If you trust its origin pass --trust-pickle; better save model.state_dict()"
            ) from None
        raise UserError(f"{path} is not a file of torch.save or is damaged ({first_line(error)})") from None


def saved_of(path: Path, content: Any) -> Saved:
    """The weights in what `read_torch` gave.

    Raises:
        UserError: there are none.
    """
    if isinstance(content, nn.Module):
        return Saved(content, "a module")
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}, no weights")
    kind = "a Lightning checkpoint" if "pytorch-lightning_version" in content else "torch.save"
    return Saved(_state_dict(path, content), kind)


def _state_dict(path: Path, content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The dict itself, or the first one inside it that holds tensors by name."""
    candidates = [content, *(content[key] for key in _INSIDE if isinstance(content.get(key), Mapping))]
    for candidate in candidates:
        tensors = {name: value for name, value in candidate.items() if isinstance(value, Tensor)}
        if tensors and len(tensors) >= len(candidate) / 2 and all(isinstance(name, str) for name in tensors):
            return _without_prefix(tensors)
    found = ", ".join(map(str, list(content)[:8])) or "nothing"
    raise UserError(f"{path} has no state dict: it holds {found}; save model.state_dict()")


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what DistributedDataParallel and torch.compile put in front of every name."""
    for prefix in ("module.", "_orig_mod."):
        if all(name.startswith(prefix) for name in state):
            return _without_prefix({name.removeprefix(prefix): value for name, value in state.items()})
    return state


def _is_zip(path: Path) -> bool:
    """Whether torch.load can map it into memory: files since PyTorch 1.6."""
    try:
        with path.open("rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError:
        return False
