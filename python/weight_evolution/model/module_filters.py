"""The arguments ``include`` and ``exclude``: modules by name, name pattern or type."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

ModuleFilter = str | type[nn.Module]


def left_out(
    names: Iterable[str],
    module: nn.Module,
    include: Sequence[ModuleFilter] | None,
    exclude: Sequence[ModuleFilter],
) -> str | None:
    """Why ``include`` and ``exclude`` leave a module out (or what else has these names in it); None: they do not."""

    def listed(entries: Sequence[ModuleFilter]) -> bool:
        return any(_matches(entry, name, module) for entry in entries for name in names)

    if listed(exclude):
        return "excluded"
    return None if include is None or listed(include) else "not included"


def check_filters(
    include: Sequence[ModuleFilter] | None, exclude: Sequence[ModuleFilter], modules: Mapping[str, nn.Module]
) -> None:
    """Every entry of the two is a name, pattern or type that matches some module.

    Raises:
        TypeError, ValueError: name the argument and the entry.
    """
    for argument, entries in (("include", include), ("exclude", exclude)):
        if entries is not None:
            _check_entries(entries, argument, modules)


def _check_entries(entries: Sequence[ModuleFilter], argument: str, modules: Mapping[str, nn.Module]) -> None:
    if isinstance(entries, str) or not isinstance(entries, Sequence):
        raise TypeError(f"{argument} must be a list of module names, name patterns or module types, got {entries!r}")
    for entry in entries:
        if not isinstance(entry, str) and not (isinstance(entry, type) and issubclass(entry, nn.Module)):
            raise TypeError(f"{argument} must hold module names or types, got {entry!r}")
        if not any(_matches(entry, name, module) for name, module in modules.items()):
            raise ValueError(f"{argument}: {entry!r} matches no module of the model")


def _matches(entry: ModuleFilter, name: str, module: nn.Module) -> bool:
    if isinstance(entry, str):
        return name == entry or name.startswith(f"{entry}.") or fnmatchcase(name, entry)
    return isinstance(module, entry)
