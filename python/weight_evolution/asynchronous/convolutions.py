"""`Convolutions`: which weights move asynchronously, as the model and the optimizer change."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

import we_kernels as wk

from ..model.links import Links
from ..model.targets import Targets
from ..model.wrapped_optimizers import parameters_of


class Convolutions:
    """The convolutions of a model that an optimizer trains, looked for again when either changed.

    Those that join are taken up: weights that ``add_param_group`` brings, layers that replace others and whose weights
    the optimizer has. One that is lost is an error, since somebody took it for one that takes part.

    Args:
        find: the convolutions among these parameters, in module order.
        optimizer: whose parameters they are.
        model: where they are; None for weights that were given one by one.
    """

    def __init__(
        self, find: Callable[[Iterable[Tensor]], Targets], optimizer: Optimizer, model: nn.Module | None
    ) -> None:
        self._find = find
        self._optimizer = optimizer
        self._model = model
        self.targets = find(parameters_of(self._optimizer))
        self._seen: list[int] = []
        self._links: Links | None = None
        self._remember()

    def bank(self) -> wk.FilterBank:
        """The filter bank of all that take part now.

        Raises:
            RuntimeError: a weight that took part is not in the model or not among the optimizer's parameters any more.
            TypeError, ValueError: a weight cannot take part any more (parametrized, a shard, on another device).
        """
        if self._seen != self._identities() or (self._links is not None and not self._links.hold()):
            self._look_again()
        return self.targets.bank()

    def _look_again(self) -> None:
        found = self._find(parameters_of(self._optimizer))
        names, modules = {target.name for target in found.items}, {id(target.module) for target in found.items}
        for target in self.targets.items:
            if target.name not in names and id(target.module) not in modules:
                reason = found.skipped.get(target.name, "not in the model any more")
                raise RuntimeError(
                    f"{target.name} was updated asynchronously and is now {reason}; give the optimizer the parameters "
                    "that the model has, or make a new AsynchronousUpdate (after detach()) or AsynchronousSGD"
                )
        found.bank()
        self.targets = found
        self._remember()

    def _remember(self) -> None:
        self._seen = self._identities()
        if self._model is not None:
            self._links = Links(self._model, [target.module for target in self.targets.items])

    def _identities(self) -> list[int]:
        """Of the optimizer's parameters and of the weights that take part."""
        weights = [target.module._parameters.get(target.attribute) for target in self.targets.items]
        return list(map(id, [*parameters_of(self._optimizer), *weights]))

    def __getstate__(self) -> dict[str, Any]:
        # Without what is known by identity: a copy finds its own.
        return {"_find": self._find, "_optimizer": self._optimizer, "_model": self._model, "targets": self.targets}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _seen=[], _links=None)
