"""`Links`: whether modules are still where they were in a model."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


class Links:
    """The ways from a model down to some of its modules, to notice that a layer was replaced.

    Args:
        model: the root.
        modules: modules in it.
    """

    def __init__(self, model: nn.Module, modules: Iterable[nn.Module]) -> None:
        self._steps: list[tuple[nn.Module, str, nn.Module]] = []
        self._collect(model, set(map(id, modules)), set())

    def hold(self) -> bool:
        """Whether every module on the ways is still its parent's child of that name; no way is walked anew."""
        return all(parent._modules.get(name) is child for parent, name, child in self._steps)

    def _collect(self, module: nn.Module, wanted: set[int], seen: set[int]) -> bool:
        """Whether a wanted module is this one or below it; adds the steps that lead there."""
        seen.add(id(module))
        found = id(module) in wanted
        for name, child in module._modules.items():
            if child is not None and id(child) not in seen and self._collect(child, wanted, seen):
                self._steps.append((module, name, child))
                found = True
        return found
