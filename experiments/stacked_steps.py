"""The steps of torch's optimizers for the tensors of many networks at once, of which the learning rates differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from we_kernels import send_
from weight_evolution import UnitAdamW

OWN_OPTIONS = ("params", "lr", "weight_decay")
"""Options of a parameter group that may differ between the networks and between the groups of one."""


class _Rates:
    """Learning rate and weight decay of each parameter in each network, on the device."""

    def __init__(
        self, parameters: Mapping[str, Tensor], named: Sequence[Mapping[str, Tensor]], optimizers: Sequence[Optimizer]
    ) -> None:
        self._names = list(parameters)
        self._groups = [_groups_of(own, optimizer) for own, optimizer in zip(named, optimizers, strict=True)]
        self._optimizers = optimizers
        device = next(iter(parameters.values())).device
        self._values = torch.zeros(2 * len(self._names) * len(optimizers), dtype=torch.float64, device=device)

    def read(self) -> None:
        """Take over what the optimizers' groups say now; does not wait for the device."""
        columns = [
            [optimizer.param_groups[number] for number in numbers]
            for optimizer, numbers in zip(self._optimizers, self._groups, strict=True)
        ]
        rows = list(zip(*columns, strict=True))
        send_(self._values, tuple(float(group[key]) for key in ("lr", "weight_decay") for row in rows for group in row))

    def of(self, parameters: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """Name -> learning rates and weight decays, to be broadcast over the stacked parameter."""
        converted: dict[torch.dtype, Tensor] = {}
        result = {}
        for number, (name, parameter) in enumerate(parameters.items()):
            if parameter.dtype not in converted:
                values = self._values.view(2, len(self._names), -1)
                converted[parameter.dtype] = values.to(parameter.dtype)
            shape = [-1, *[1] * (parameter.dim() - 1)]
            lr, decay = converted[parameter.dtype][:, number]
            result[name] = lr.view(shape), decay.view(shape)
        return result


class _Update:
    """Of stacked parameters [R, ...], by their ``grad``; the optimizers' states are views of its own."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        named: Sequence[Mapping[str, Tensor]],
        optimizers: Sequence[Optimizer],
        groups: Mapping[str, int],
    ) -> None:
        self._parameters, self._groups = parameters, groups
        self._options: dict[str, Any] = optimizers[0].param_groups[0]
        self.rates = _Rates(parameters, named, optimizers)

    def __call__(self) -> None:
        """Make the step with the rates that were read last; waits for nothing."""
        raise NotImplementedError


class AdamUpdate(_Update):
    """torch.optim.Adam, AdamW and UnitAdamW."""

    unsupported = ("amsgrad", "maximize")

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        named: Sequence[Mapping[str, Tensor]],
        optimizers: Sequence[Optimizer],
        groups: Mapping[str, int],
    ) -> None:
        super().__init__(parameters, named, optimizers, groups)
        self._decoupled = bool(self._options.get("decoupled_weight_decay", isinstance(optimizers[0], AdamW)))
        self._steps = torch.zeros((), device=next(iter(parameters.values())).device)
        self._states: dict[str, dict[str, Tensor]] = {}
        for name, parameter in parameters.items():
            state = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
            if isinstance(optimizers[0], UnitAdamW):
                replicas, rows, *columns = parameter.shape
                state["row_reset"] = torch.zeros(replicas, rows, device=parameter.device)
                width = groups[name] * (columns or [1])[0]
                state["column_reset"] = torch.zeros(replicas, width, device=parameter.device)
            self._states[name] = state
            for number, (own, optimizer) in enumerate(zip(named, optimizers, strict=True)):
                views = {key: value.detach()[number] for key, value in state.items()}
                optimizer.state[own[name]] = {"step": self._steps, **views}

    def __call__(self) -> None:
        self._steps += 1
        (beta1, beta2), eps = self._options["betas"], self._options["eps"]
        rates = self.rates.of(self._parameters)
        for name, parameter in self._parameters.items():
            state, grad = self._states[name], grad_of(parameter)
            rate, decay = rates[name]
            if self._decoupled:
                parameter.mul_(1 - rate * decay)
            else:
                grad = grad.addcmul(parameter, decay)
            mean, square = state["exp_avg"], state["exp_avg_sq"]
            mean.lerp_(grad, 1 - beta1)
            square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
            age = self._age(state, parameter, self._groups[name]).to(parameter.dtype)
            size = rate / _correction(beta1, age)
            parameter.sub_(size * mean / ((square.sqrt() / _correction(beta2, age).sqrt()).add_(eps)))

    def _age(self, state: Mapping[str, Tensor], parameter: Tensor, groups: int) -> Tensor:
        """Steps since each element was new, to be broadcast over the parameter."""
        if "row_reset" not in state:
            return self._steps
        replicas = len(parameter)
        rows = state["row_reset"].view(replicas, groups, -1, 1)
        reset = torch.maximum(rows, state["column_reset"].view(replicas, groups, 1, -1)).flatten(1, 2)
        return (self._steps - reset).view(*parameter.shape[:3], *[1] * (parameter.dim() - 3))


class SgdUpdate(_Update):
    """torch.optim.SGD."""

    unsupported = ("nesterov", "dampening", "maximize")

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        named: Sequence[Mapping[str, Tensor]],
        optimizers: Sequence[Optimizer],
        groups: Mapping[str, int],
    ) -> None:
        super().__init__(parameters, named, optimizers, groups)
        self._momenta = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        for name, momentum in self._momenta.items() if self._options["momentum"] else ():
            for own, optimizer, view in zip(named, optimizers, momentum.detach(), strict=True):
                optimizer.state[own[name]] = {"momentum_buffer": view}

    def __call__(self) -> None:
        rates = self.rates.of(self._parameters)
        for name, parameter in self._parameters.items():
            rate, decay = rates[name]
            grad = grad_of(parameter).addcmul(parameter, decay)
            momentum = self._momenta[name].mul_(self._options["momentum"]).add_(grad)
            parameter.addcmul_(rate, momentum, value=-1)


_UPDATES: dict[type[Optimizer], type[AdamUpdate] | type[SgdUpdate]] = {
    Adam: AdamUpdate,
    AdamW: AdamUpdate,
    UnitAdamW: AdamUpdate,
    SGD: SgdUpdate,
}


def update_of(
    optimizers: Sequence[Optimizer], named: Sequence[Mapping[str, Tensor]]
) -> type[AdamUpdate] | type[SgdUpdate]:
    """What updates all networks at once.

    Raises:
        ValueError: the optimizers are not alike, or not supported.
    """
    first = optimizers[0]
    if type(first) not in _UPDATES:
        raise ValueError(f"optimizers must be {', '.join(k.__name__ for k in _UPDATES)}, got {type(first).__name__}")
    update = _UPDATES[type(first)]
    if found := [name for name in update.unsupported if first.param_groups[0][name]]:
        raise ValueError(f"a Stack does not support the option {found[0]} of {type(first).__name__}")
    shared = _shared_options(first.param_groups[0])
    for own, optimizer in zip(named, optimizers, strict=True):
        if type(optimizer) is not type(first) or any(_shared_options(g) != shared for g in optimizer.param_groups):
            raise ValueError(
                "optimizers must be of one class, with the same options but learning rates and weight decays"
            )
        trained = sorted(id(parameter) for group in optimizer.param_groups for parameter in group["params"])
        if trained != sorted(map(id, own.values())):
            raise ValueError("each optimizer must have all parameters of its network, and no others")
        if optimizer.state:
            raise ValueError("optimizers must not have made a step yet")
    return update


def grad_of(parameter: Tensor) -> Tensor:
    """Its gradient, which is there."""
    assert parameter.grad is not None
    return parameter.grad


def call_step_hooks(optimizers: Sequence[Optimizer], which: str) -> None:
    """``which``: "pre" or "post"; hooks see the step of their optimizer as torch's wrapper would show it."""
    for optimizer in optimizers:
        hooks: Mapping[int, Callable[..., Any]] = getattr(optimizer, f"_optimizer_step_{which}_hooks")
        for hook in hooks.values():
            hook(optimizer, (optimizer,), {})


def has_step_hooks(optimizer: Optimizer) -> bool:
    """Whether something is to be done around its steps."""
    return bool(optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks)


def _groups_of(named: Mapping[str, Tensor], optimizer: Optimizer) -> list[int]:
    """Of each parameter, which group of the optimizer it is in."""
    number = {id(p): i for i, group in enumerate(optimizer.param_groups) for p in group["params"]}
    return [number[id(parameter)] for parameter in named.values()]


def _shared_options(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name not in OWN_OPTIONS}


def _correction(beta: float, age: Tensor) -> Tensor:
    """1 - beta ** age, without cancellation."""
    return -torch.expm1(age * (math.log(beta) if beta else -math.inf))
