"""`Structure`: whether a model's layers, and what of them is trained, are still as they were."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from .wrapped_optimizers import parameters_of


class Structure:
    """What decides which parameters take part, as it was when this was made.

    Args:
        model: the network.
        candidates: (module, attribute) of the parameters that could take part.
        optimizer: whose parameters count, if any.
    """

    def __init__(
        self, model: nn.Module, candidates: Iterable[tuple[nn.Module, str]], optimizer: Optimizer | None
    ) -> None:
        # The dictionaries themselves: reading them is 20 times as fast as walking model.modules().
        self._children = [(module._modules, [*module._modules.values()]) for module in model.modules()]
        self._children = [(now, then) for now, then in self._children if then]
        self._candidates = [(module._parameters, attribute) for module, attribute in candidates]
        self._optimizer = optimizer
        self._trained = self._trained_now()
        self._optimized: list[int] | None = self._optimized_now()

    def holds(self) -> bool:
        """Whether no layer was added, removed or replaced, no parameter frozen, thawed, shared or computed since."""
        return (
            all([*now.values()] == then for now, then in self._children)
            and self._trained == self._trained_now()
            and self._optimized == self._optimized_now()
        )

    def _trained_now(self) -> list[tuple[int, bool] | None]:
        """Of each candidate: the first one that is the same parameter, and whether it is trained."""
        first: dict[int, int] = {}
        parameters = [held.get(attribute) for held, attribute in self._candidates]
        return [
            None if parameter is None else (first.setdefault(id(parameter), i), parameter.requires_grad)
            for i, parameter in enumerate(parameters)
        ]

    def _optimized_now(self) -> list[int]:
        return [] if self._optimizer is None else list(map(id, parameters_of(self._optimizer)))

    def __getstate__(self) -> dict[str, Any]:
        # Identities are not those of a copy, which looks anew.
        return {**self.__dict__, "_optimized": None}
