"""The arguments ``include`` and ``exclude``: modules by name, name pattern or type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import nn

from ..arguments import check_model
from .wrappers import named_modules

ModuleFilter = str | type[nn.Module]


class ModuleChoice(NamedTuple):
    """The two arguments."""

    include: Sequence[ModuleFilter] | None = None
    exclude: Sequence[ModuleFilter] = ()

    def left_out(self, module: nn.Module, *names: str) -> str | None:
        """Why a module (or what else has these names in it) is left out; None: it is not."""

        def listed(entries: Sequence[ModuleFilter]) -> bool:
            return any(_matches(entry, name, module) for entry in entries for name in names)

        if listed(self.exclude):
            return "excluded"
        return None if self.include is None or listed(self.include) else "not included"

    def check(self, modules: Mapping[str, nn.Module]) -> None:
        """Every entry of the two is a name, pattern or type that matches some module.

        Raises:
            TypeError, ValueError: name the argument and the entry.
        """
        for argument, entries in self._asdict().items():
            if entries is not None:
                _check_entries(entries, argument, modules)

    def modules_of(self, model: nn.Module) -> dict[str, nn.Module]:
        """All modules of a model by name, without wrappers.

        Raises:
            TypeError, ValueError: ``model`` is no module, or see `check`.
        """
        modules = dict(named_modules(check_model(model)))
        self.check(modules)
        return modules


EVERYTHING = ModuleChoice()


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
