"""Options of the command ``train`` in a TOML file: one key for each, ``batch-size = 64`` for ``--batch-size 64``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..extras import install
from .errors import UserError

if sys.version_info >= (3, 11):
    import tomllib
else:
    try:
        import tomli as tomllib
    except ImportError:
        tomllib = None

_FLAGS = (argparse._StoreTrueAction, argparse._StoreFalseAction)
_LEFT_OUT = ("help", "config", "print_config")
"""What is no option of a run."""


def read_config(path: Path, parser: argparse.ArgumentParser) -> list[str]:
    """The file's options as arguments of the command line.

    Args:
        path: of a file of keys, without tables; a key is the name of an option without its dashes, of a flag
            ``--no-NAME`` the NAME, with true or false.
        parser: that knows the options.

    Raises:
        UserError: names the file, and the key that is unknown or the value of another type. What an option refuses, the
            parser does.
    """
    actions = {_key(action): action for action in parser._actions if _is_option(action)}
    arguments: list[str] = []
    for key, value in _values(path).items():
        action = actions.get(key.replace("_", "-"))
        if action is None:
            raise UserError(f"{path}: there is no option {key}; --print-config writes a file with all")
        arguments += _arguments(path, key, value, action)
    return arguments


def format_config(parser: argparse.ArgumentParser, options: argparse.Namespace, unused: Collection[str]) -> str:
    """A file with all options, for `read_config`; those that have no value, or are unused, are comments.

    Args:
        parser: that knows the options.
        options: their values.
        unused: options that say nothing, as on the command line.
    """
    lines = ["# weight-evolution train --config FILE. What is commented out has its default, or is of another method."]
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if _is_option(action)]
        shown = [_line(action, getattr(options, action.dest), unused) for action in actions]
        lines += ["", f"# {group.title}", *shown] if shown else []
    return "\n".join(lines)


def _is_option(action: argparse.Action) -> bool:
    """Whether it has a key: other spellings, which the help does not show, have none."""
    return action.help != argparse.SUPPRESS and action.dest not in _LEFT_OUT


def _key(action: argparse.Action) -> str:
    """Its name without dashes; of ``--no-NAME`` the NAME."""
    name = action.option_strings[-1].lstrip("-")
    return name.removeprefix("no-") if isinstance(action, argparse._StoreFalseAction) else name


def _values(path: Path) -> dict[str, Any]:
    if tomllib is None:
        raise UserError(f"--config on Python 3.10 needs tomli: {install('train')}")
    try:
        return dict(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"--config: cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:  # of TOML, and of UTF-8
        raise UserError(f"--config: {path} is not TOML: {error}") from None


def _arguments(path: Path, key: str, value: Any, action: argparse.Action) -> list[str]:
    if isinstance(action, _FLAGS):
        if not isinstance(value, bool):
            raise UserError(f"{path}: {key} must be true or false, got {value!r}")
        # The opposite of a flag is its default, which needs no argument.
        return [action.option_strings[-1]] if value == action.const else []
    many = action.nargs in ("+", "*")
    entries = value if many and isinstance(value, list) else [value]
    if wrong := [entry for entry in entries if isinstance(entry, bool) or not isinstance(entry, (int, float, str))]:
        kind = "a number or string, or a list of them" if many else "a number or a string"
        if action.choices is not None:
            kind = f"one of {', '.join(map(str, action.choices))}"
        raise UserError(f"{path}: {key} must be {kind}, got {wrong[0]!r}")
    texts = [entry if isinstance(entry, str) else repr(entry) for entry in entries]
    return [action.option_strings[-1], *texts] if many else [f"{action.option_strings[-1]}={texts[0]}"]


def _line(action: argparse.Action, value: Any, unused: Collection[str]) -> str:
    comment = "# " if value is None or action.option_strings[-1] in unused else ""
    return f"{comment}{_key(action)} = {'' if value is None else _toml(value)}".rstrip()


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, (int, float)):
        return repr(value)
    # JSON's strings are TOML's, but for one character.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
