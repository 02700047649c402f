"""Networks among the entries of what a checkpoint holds: nested dicts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..training.errors import UserError

Found = dict[str, Mapping[Any, Any] | nn.Module]
"""Dotted name -> a state dict or module; "" is the whole."""

_DEPTH = 4
"""Dicts in dicts that are looked into."""


def networks_in(content: Mapping[Any, Any] | nn.Module, usual: Collection[str]) -> Found:
    """The whole, if it is a network, else those inside it.

    An entry with one of the names ``usual`` is a state dict if half of it are tensors by name; of others one must be a
    matrix called weight, too, which an optimizer's state is without.
    """
    if isinstance(content, nn.Module) or is_state_dict(content):
        return {"": content}
    found: Found = {}
    _look_into(content, usual, "", found, _DEPTH)
    return found


def entry(path: Path, content: Any, key: str) -> Any:
    """What nested dicts hold under a dotted name; the names in it may have dots themselves.

    Raises:
        UserError: there is none; says what is there.
    """
    found = list(_entries(content, key))
    if not found:
        names = ", ".join(map(str, list(content)[:8])) if isinstance(content, Mapping) else type(content).__name__
        raise UserError(f"--key {key}: there is no such entry in {path}; it holds {names or 'nothing'}")
    return found[0]


def is_state_dict(content: Mapping[Any, Any]) -> bool:
    """Whether at least half of it are tensors by name."""
    tensors = tensors_in(content)
    return bool(tensors) and len(tensors) >= len(content) / 2 and all(isinstance(name, str) for name in tensors)


def tensors_in(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Its own tensors, by name."""
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def _look_into(content: Mapping[Any, Any], usual: Collection[str], prefix: str, found: Found, depth: int) -> None:
    for name, value in content.items():
        if not isinstance(name, str):
            continue
        if isinstance(value, nn.Module):
            found[prefix + name] = value
        elif isinstance(value, Mapping):
            if is_state_dict(value) and (name in usual or _has_matrix(value)):
                found[prefix + name] = value
            elif depth > 1:
                _look_into(value, usual, f"{prefix}{name}.", found, depth - 1)


def _has_matrix(content: Mapping[str, Any]) -> bool:
    return any(name.rpartition(".")[2] == "weight" and value.dim() > 1 for name, value in tensors_in(content).items())


def _entries(content: Any, key: str) -> list[Any]:
    if not isinstance(content, Mapping):
        return []
    found = [value for name, value in content.items() if str(name) == key]
    for name, value in content.items():
        if key.startswith(f"{name}."):
            found += _entries(value, key.removeprefix(f"{name}."))
    return found
