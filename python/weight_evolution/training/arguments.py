"""Options of the command line: their types, each of whose errors says what a value must be, and dataclasses of them."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options", bound="DataclassInstance")


@dataclass(frozen=True)
class _Number:
    """The type of an argument."""

    kind: type[int] | type[float]
    what: str
    holds: Callable[[float], bool]

    def __call__(self, text: str) -> float:
        try:
            value = self.kind(text)
        except ValueError:
            value = math.nan
        if not self.holds(value):
            raise argparse.ArgumentTypeError(f"must be {self.what}, got {text!r}")
        return value


fraction = _Number(float, "a number in [0, 1]", lambda value: 0 <= value <= 1)
positive_float = _Number(float, "a positive number", lambda value: 0 < value < math.inf)
non_negative_float = _Number(float, "a number from 0, and finite", lambda value: 0 <= value < math.inf)
decay = _Number(float, "a number above 0 and below 1", lambda value: 0 < value < 1)
momentum = _Number(float, "below 1, and a number from 0", lambda value: 0 <= value < 1)
positive_int = _Number(int, "an integer from 1", lambda value: value >= 1)
non_negative_int = _Number(int, "an integer from 0", lambda value: value >= 0)


def option(default: Any, /, help: str = "", *, flag: str | None = None, **argument: Any) -> Any:
    """A field of a dataclass of options that is an option of the command line, too; see `add_options`.

    Args:
        default: of both, unless ``argument`` has another one for the command line.
        help: on the command line, which adds the default, if there is one and the help does not speak of it.
        flag: its name there, with underscores; that of the field, behind the prefix of them all, when left out.
        argument: further arguments of ``add_argument``.
    """
    return field(default=default, metadata={"help": help, "flag": flag, "argument": argument})


def add_options(group: argparse._ActionsContainer, kind: type[Options], prefix: str = "") -> None:
    """An argument for each `option` of a dataclass; one that is True or False is a flag (`add_flag`)."""
    for entry in fields(kind):
        if entry.metadata:
            name = _destination(entry, prefix)
            help = entry.metadata["help"]
            argument: dict[str, Any] = {"default": entry.default, **entry.metadata["argument"]}
            if isinstance(entry.default, bool):
                add_flag(group, name, help, default=entry.default)
                continue
            if argument["default"] is not None and "default" not in help:
                help = f"{help} (default %(default)s)" if help else "default %(default)s"
            group.add_argument(f"--{name.replace('_', '-')}", help=help, **argument)


def add_flag(group: argparse._ActionsContainer, name: str, help: str, *, default: bool = False) -> None:
    """``--NAME``, or ``--no-NAME`` where the default is True; the other one, which undoes it, is not in the help.

    Args:
        group: where the flag belongs.
        name: with underscores.
        help: of what differs from the default.
        default: without the flag.
    """
    on, off = f"--{name.replace('_', '-')}", f"--no-{name.replace('_', '-')}"
    for spelling, action in ((on, "store_true"), (off, "store_false")):
        hidden = (spelling == on) == default
        group.add_argument(
            spelling, dest=name, action=action, default=default, help=argparse.SUPPRESS if hidden else help
        )


def options_of(kind: type[Options], arguments: argparse.Namespace, prefix: str = "", **others: Any) -> Options:
    """A dataclass of options from the command line's. What is not made by `option` has the same name there.

    Args:
        kind: the dataclass.
        arguments: of the command line.
        prefix: as given to `add_options`.
        others: fields that have another value.
    """
    read = {entry.name: _destination(entry, prefix) for entry in fields(kind) if entry.name not in others}
    return kind(**{name: getattr(arguments, destination) for name, destination in read.items()}, **others)


def _destination(entry: Field[Any], prefix: str) -> str:
    return (entry.metadata["flag"] or prefix + entry.name) if entry.metadata else entry.name
