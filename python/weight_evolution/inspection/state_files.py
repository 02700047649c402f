"""Weights in files: torch.save, safetensors, Lightning and shards."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..training.errors import UserError, needed
from ..training.torch_files import kind_of, load_file
from .entries import Found, entry, networks_in, tensors_in

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
_AVERAGED = "n_averaged"
"""The counter in the state dict of torch's AveragedModel."""


@dataclass(frozen=True)
class Saved:
    """What a file holds: a state dict or a whole module, and what kind of file it was."""

    content: dict[str, Tensor] | nn.Module
    kind: str
    notes: tuple[str, ...] = ()
    """Which of its entries was read, where there are several."""


def read_weights(path: Path, trust_pickle: bool = False, key: str | None = None) -> Saved:
    """The weights of a file, on the CPU.

    Args:
        path: of torch.save (a state dict, or a dict that has one, such as Lightning's; a whole module with
            ``trust_pickle``), safetensors, or an index of shards of one of them.
        trust_pickle: also load files that run code of their own while they are read.
        key: as for `saved_of`.

    Raises:
        UserError: says what is there instead.
    """
    if is_torch_file(path):
        return saved_of(path, read_torch(path, trust_pickle), key)
    if key is not None:
        raise UserError(f"--key names an entry of a file of torch.save, and {path} is none; leave it out")
    if path.suffix == ".safetensors":
        return Saved(_read_safetensors(path), "safetensors")
    return _read_shards(path, trust_pickle)


def is_torch_file(path: Path) -> bool:
    """Whether `read_weights` takes it for a file of torch.save."""
    return path.suffix != ".safetensors" and not path.name.endswith(".index.json")


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
        raise UserError(f"{path} is not a safetensors file or is damaged ({kind_of(path) or error})") from None


def read_torch(path: Path, trust_pickle: bool) -> Any:
    """What a file of torch.save holds, on the CPU, mapped into memory where it can be.

    Raises:
        UserError: it is no such file, or reading it would run code.
    """
    advice = ". If you trust its origin pass --trust-pickle; better save model.state_dict()"
    return load_file(path, "a file of torch.save", trust_pickle=trust_pickle, mmap=True, advice=advice)


def saved_of(path: Path, content: Any, key: str | None = None) -> Saved:
    """The weights in what `read_torch` gave.

    Args:
        path: of the file, for messages.
        content: of it.
        key: the entry that has them, dotted in nested dicts; None: the only one, or one of a usual name.

    Raises:
        UserError: there are none, or several of which none has a usual name.
    """
    kind = "torch.save"
    if isinstance(content, Mapping) and "pytorch-lightning_version" in content:
        kind = "a Lightning checkpoint"
    if key is not None:
        content, kind = entry(path, content, key), f"{kind}, {key}"
    if not isinstance(content, (Mapping, nn.Module)):
        raise UserError(f"{path} holds a {type(content).__name__}, no weights")
    found = networks_in(content, _INSIDE)
    name = _choice(path, content, found)
    network, notes = found[name], _notes(key, name, list(found))
    if isinstance(network, nn.Module):
        return Saved(network, f"{kind}, a module", notes)
    return Saved(_without_prefix(tensors_in(network)), kind, notes)


def _notes(key: str | None, name: str, found: Sequence[str]) -> tuple[str, ...]:
    """Which entry was read, if that does not go without saying."""
    read, *others = (".".join(filter(None, (key, each))) for each in sorted(found, key=lambda each: each != name))
    if others:
        return (f"read: {read}, not {', '.join(others)}; --key names another",)
    return () if name in ("", *_INSIDE) else (f"read: {read}",)


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what DistributedDataParallel and torch.compile put in front of every name."""
    for prefix in ("module.", "_orig_mod."):
        inner = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if inner and state.keys() - {_AVERAGED} == {prefix + name for name in inner}:
            return _without_prefix(inner)
    return state


def _choice(path: Path, content: Any, found: Found) -> str:
    """The name of the entry to read."""
    usual = [name for name in ("", *_INSIDE) if name in found]
    if usual or len(found) == 1:
        return [*usual, *found][0]
    if found:
        raise UserError(f"{path} holds several networks: {', '.join(found)}; name one by --key")
    holds = ", ".join(map(str, list(content)[:8])) or "nothing"
    raise UserError(f"{path} has no state dict: it holds {holds}; save model.state_dict()")
