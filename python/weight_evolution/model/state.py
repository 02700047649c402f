"""Checks of what ``state_dict()`` of a method returned, perhaps in another run or by another version."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from we_kernels.checks import is_number

from ..arguments import check_count

UNLESS_LENIENT = ", or pass strict=False (to load_state_dict, or to the callback) to go on with these"


def check_state(state: Mapping[str, Any], owner: str, formats: Collection[int], entries: Mapping[str, type]) -> None:
    """The state is one of ``owner``, of a format that is read, with these entries of these types.

    An int is a count, from 0; a dict may be any mapping.

    Raises:
        ValueError: names the first entry that is not so.
    """
    what = f"state is not a state_dict of {owner}"
    if not isinstance(state, Mapping):
        raise ValueError(f"{what}: it is a {type(state).__name__}")
    if "format" not in state:
        raise ValueError(f"{what}: it has no 'format'")
    if state["format"] not in formats:
        raise ValueError(f"state has format {state['format']!r}, this version reads {' and '.join(map(str, formats))}")
    for name, kind in entries.items():
        if name not in state:
            raise ValueError(f"{what}: it has no {name!r}")
        if kind is int:
            read_count(state[name], f"state[{name!r}]")
        elif not _is(state[name], kind):
            raise ValueError(f"{what}: its {name!r} is a {type(state[name]).__name__}, not a {kind.__name__}")


def read_count(value: Any, name: str) -> int:
    """A count in a state, from 0; raises ValueError if it is none."""
    try:
        return check_count(value, name)
    except TypeError as error:
        raise ValueError(str(error)) from None


def check_same_model(there: Mapping[str, Any], here: Mapping[str, Any], what: str) -> None:
    """Every name has the same ("{} filters", say) in the state and here.

    Raises:
        ValueError: names the first difference.
    """
    for name in [*here, *there]:
        if there.get(name) != here.get(name):
            raise ValueError(
                f"state is of another model: {name} has {_or_none(there.get(name), what)} there and "
                f"{_or_none(here.get(name), what)} here"
            )


def check_same_options(there: Mapping[str, Any], here: Mapping[str, Any], owner: str, otherwise: str = "") -> None:
    """The options that the state has are those here; ``otherwise`` is what else the error says to do.

    Raises:
        ValueError: names the first that differs.
    """
    for name, own in here.items():
        if name in there and there[name] != own:
            raise ValueError(
                f"state was saved with {name}={there[name]!r}, this {owner} has {own!r}; make it with the same "
                f"options{otherwise}"
            )


def _is(value: object, kind: type) -> bool:
    return is_number(value) if kind is float else isinstance(value, Mapping if kind is dict else kind)


def _or_none(value: object, what: str) -> str:
    return f"no {what.replace('{}', '').strip()}" if value is None else what.format(value)
