"""`Stack`: many networks of one architecture, trained as one.

A small network takes longer to call than to compute. Here the parameters of all networks are one tensor [R, ...] each,
a pass through all of them is one pass (grouped convolutions and batched products, by torch.func.vmap), and so is the
optimizer's step. The networks themselves stay: their parameters, gradients and optimizer states are views of the
stacked ones, and their forward hooks are called with their part, so that methods work on them as on any network.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.functional import cross_entropy
from torch.nn.modules.conv import _ConvNd
from torch.optim import SGD, Adam, AdamW, Optimizer

from weight_evolution import UnitAdamW

_Call = tuple[tuple[Tensor, ...], dict[str, Tensor], Tensor]
"""Arguments of a module's forward, and its output."""


class Stack:
    """R networks that differ in weights, data, learning rates and methods only.

        networks = [make_network() for _ in range(replicas)]
        optimizers = [torch.optim.Adam(network.parameters(), lr) for network in networks]
        reactivations = [UnitReactivation(*pair) for pair in zip(networks, optimizers)]
        stack = Stack(networks, optimizers)
        for images, labels in batches:  # [R, N, ...], [R, N]
            stack.backward(images, labels)
            stack.step()
            for reactivation in reactivations:
                reactivation.step()

    Each network is trained as it would be alone, up to rounding and what dropout draws. Learning rates are read at
    every step.

    Args:
        networks: of one architecture, which torch.func.vmap can run; none of their parameters is frozen.
        optimizers: one for each, all torch.optim.Adam, AdamW, SGD or all UnitAdamW, with all of the network's
            parameters in one group, not yet used, and equal in all but the learning rate.
        own_steps: let each optimizer make its own step, of whatever class and options it is; for networks that are so
            large that the calls count for little, where torch.optim's fused steps are faster than the stack's.

    Raises:
        ValueError: they are not alike, or an option of the optimizers is not supported; nothing is changed.
    """

    def __init__(
        self, networks: Sequence[nn.Module], optimizers: Sequence[Optimizer], *, own_steps: bool = False
    ) -> None:
        if not networks or len(networks) != len(optimizers):
            raise ValueError(f"optimizers must be one for each of the networks: {len(optimizers)}, {len(networks)}")
        self.networks, self._optimizers = list(networks), list(optimizers)
        named = [dict(network.named_parameters()) for network in networks]
        _check_alike(networks)
        update = None if own_steps else _update_of(optimizers, named)
        self._modules = [dict(network.named_modules()) for network in networks]
        self._template = copy.deepcopy(networks[0])
        self._buffers = _stacked([dict(network.named_buffers()) for network in networks])
        self._parameters = _stacked(named)
        for name, parameter in self._parameters.items():
            parameter.grad = torch.zeros_like(parameter)
            for own, grad in zip(named, parameter.grad, strict=True):
                own[name].grad = grad
            parameter.requires_grad_()
        self._update: _Adam | _Sgd | None = None
        if update is not None:
            self._update = update(self._parameters, named, self._optimizers, _groups_of(networks[0]))

    def forward(self, images: Tensor) -> Tensor:
        """Outputs [R, N, ...] for images [R, N, ...], in training mode; the networks' forward hooks are called."""
        watched = {
            name
            for modules in self._modules
            for name, module in modules.items()
            if module._forward_hooks or module._forward_pre_hooks
        }
        self._template.train()
        outputs, calls = self._run(images, watched)
        for number, modules in enumerate(self._modules):
            for name, call in calls.items():
                _call_hooks(modules[name], _part(call, number))
        return outputs

    @torch.no_grad()
    def predict(self, images: Tensor, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """Outputs in evaluation mode; no hook is called.

        Args:
            parameters: those of `copy_parameters`, instead of the present ones.
        """
        self._template.eval()
        return self._run(images, (), parameters)[0]

    def copy_parameters(self) -> dict[str, Tensor]:
        """Of all networks as they are now, by name: [R, ...]."""
        return {name: parameter.detach().clone() for name, parameter in self._parameters.items()}

    def backward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Gradients of each network's mean cross-entropy, in the ``grad`` of its parameters; returns the outputs."""

        def losses(outputs: Tensor) -> Tensor:
            each = cross_entropy(outputs.flatten(0, 1), labels.flatten(), reduction="none")
            return each.view(labels.shape).mean(1)

        return self.differentiate(images, losses)

    def differentiate(self, images: Tensor, losses: Callable[[Tensor], Tensor]) -> Tensor:
        """Gradients of each network's loss, in the ``grad`` of its parameters; returns the outputs.

        Args:
            images: [R, N, ...].
            losses: outputs [R, N, ...] -> [R].
        """
        outputs = self.forward(images)
        parameters = list(self._parameters.values())
        gradients = torch.autograd.grad(losses(outputs).sum(), parameters, materialize_grads=True)
        torch._foreach_copy_([_grad(parameter) for parameter in parameters], gradients)
        return outputs.detach()

    @torch.no_grad()
    def step(self) -> None:
        """What each optimizer's step would do."""
        if self._update is None:
            for optimizer in self._optimizers:
                optimizer.step()
            return
        rates = [optimizer.param_groups[0]["lr"] for optimizer in self._optimizers]
        self._update(torch.tensor(rates, dtype=torch.float64))

    def _run(
        self, images: Tensor, watched: Iterable[str], parameters: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, _Call]]:
        """Outputs, and the calls of the modules that are watched."""
        calls: dict[str, _Call] = {}
        modules = dict(self._template.named_modules())
        handles = [
            modules[name].register_forward_hook(_recorder(calls, name), with_kwargs=True) for name in sorted(watched)
        ]

        def run(weights: Any, buffers: Any, own: Tensor) -> tuple[Tensor, dict[str, _Call]]:
            outputs: Tensor = functional_call(self._template, (weights, buffers), (own,))
            return outputs, calls

        try:
            result: tuple[Tensor, dict[str, _Call]] = vmap(run, randomness="different")(
                self._parameters if parameters is None else dict(parameters), self._buffers, images
            )
        finally:
            for handle in handles:
                handle.remove()
        return result


class _Adam:
    """torch.optim.Adam, AdamW and UnitAdamW over stacked tensors."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        named: Sequence[Mapping[str, Tensor]],
        optimizers: Sequence[Optimizer],
        groups: Mapping[str, int],
    ) -> None:
        self._options = options = optimizers[0].param_groups[0]
        self._decoupled = bool(options.get("decoupled_weight_decay", isinstance(optimizers[0], AdamW)))
        self._parameters, self._groups = parameters, groups
        self._steps = torch.zeros(())
        self._states: dict[str, dict[str, Tensor]] = {}
        for name, parameter in parameters.items():
            state = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
            if isinstance(optimizers[0], UnitAdamW):
                replicas, rows, *columns = parameter.shape
                state["row_reset"] = torch.zeros(replicas, rows)
                state["column_reset"] = torch.zeros(replicas, groups[name] * (columns or [1])[0])
            self._states[name] = state
            for number, (own, optimizer) in enumerate(zip(named, optimizers, strict=True)):
                views = {key: value.detach()[number] for key, value in state.items()}
                optimizer.state[own[name]] = {"step": self._steps, **views}

    def __call__(self, lr: Tensor) -> None:
        self._steps += 1
        options = self._options
        (beta1, beta2), eps, decay = options["betas"], options["eps"], options["weight_decay"]
        for name, parameter in self._parameters.items():
            state, grad, rate = self._states[name], _grad(parameter), _per_network(lr, parameter)
            if decay and self._decoupled:
                parameter.mul_(1 - rate * decay)
            elif decay:
                grad = grad.add(parameter, alpha=decay)
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


class _Sgd:
    """torch.optim.SGD over stacked tensors."""

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        named: Sequence[Mapping[str, Tensor]],
        optimizers: Sequence[Optimizer],
        groups: Mapping[str, int],
    ) -> None:
        self._options = options = optimizers[0].param_groups[0]
        self._parameters = parameters
        self._momenta = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        for name, momentum in self._momenta.items() if options["momentum"] else ():
            for own, optimizer, view in zip(named, optimizers, momentum.detach(), strict=True):
                optimizer.state[own[name]] = {"momentum_buffer": view}

    def __call__(self, lr: Tensor) -> None:
        for name, parameter in self._parameters.items():
            grad = _grad(parameter).add(parameter, alpha=self._options["weight_decay"])
            momentum = self._momenta[name].mul_(self._options["momentum"]).add_(grad)
            parameter.sub_(_per_network(lr, parameter) * momentum)


def _check_alike(networks: Sequence[nn.Module]) -> None:
    described = []
    for network in networks:
        tensors = [*network.named_parameters(), *network.named_buffers()]
        described.append([(name, x.shape, x.dtype, x.requires_grad) for name, x in tensors])
        if not all(parameter.requires_grad for parameter in network.parameters()):
            raise ValueError("networks must have no frozen parameters")
    for number, own in enumerate(described):
        if own != described[0]:
            raise ValueError(f"networks must be of one architecture and dtype, but networks[{number}] is another")


_UPDATES: dict[type[Optimizer], tuple[type[_Adam] | type[_Sgd], tuple[str, ...]]] = {
    Adam: (_Adam, ("amsgrad", "maximize")),
    AdamW: (_Adam, ("amsgrad", "maximize")),
    UnitAdamW: (_Adam, ("amsgrad", "maximize")),
    SGD: (_Sgd, ("nesterov", "dampening", "maximize")),
}
"""Class -> its update of stacked tensors, and options that this does not have."""


def _update_of(optimizers: Sequence[Optimizer], named: Sequence[Mapping[str, Tensor]]) -> type[_Adam] | type[_Sgd]:
    """What updates all networks at once.

    Raises:
        ValueError: the optimizers are not alike, or not supported.
    """
    first = optimizers[0]
    if type(first) not in _UPDATES:
        raise ValueError(f"optimizers must be {', '.join(k.__name__ for k in _UPDATES)}, got {type(first).__name__}")
    update, unsupported = _UPDATES[type(first)]
    if found := [name for name in unsupported if first.param_groups[0][name]]:
        raise ValueError(f"a Stack does not support the option {found[0]} of {type(first).__name__}")
    for own, optimizer in zip(named, optimizers, strict=True):
        if type(optimizer) is not type(first) or _options(optimizer) != _options(first):
            raise ValueError("optimizers must be of one class, with the same options but the learning rate")
        if list(map(id, optimizer.param_groups[0]["params"])) != list(map(id, own.values())):
            raise ValueError("each optimizer must have all parameters of its network, in their order, in one group")
        if optimizer.state:
            raise ValueError("optimizers must not have made a step yet")
    return update


def _options(optimizer: Optimizer) -> list[dict[str, Any]]:
    return [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in optimizer.param_groups]


def _stacked(named: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Name -> [R, ...]; the tensors become views of it."""
    stacked = {}
    for name in named[0]:
        stacked[name] = torch.stack([own[name].detach() for own in named])
        for own, view in zip(named, stacked[name], strict=True):
            own[name].data = view
    return stacked


def _groups_of(network: nn.Module) -> dict[str, int]:
    """Parameter name -> groups of the convolution whose weight it is, else 1."""
    groups = {}
    for prefix, module in network.named_modules():
        for name, _ in module.named_parameters(prefix, recurse=False):
            groups[name] = module.groups if isinstance(module, _ConvNd) and name.endswith("weight") else 1
    return groups


def _recorder(calls: dict[str, _Call], name: str) -> Callable[..., None]:
    def record(module: nn.Module, given: Any, named: Any, output: Tensor) -> None:
        calls[name] = given, named, output

    return record


def _part(call: _Call, number: int) -> _Call:
    given, named, output = call
    return tuple(x[number] for x in given), {name: x[number] for name, x in named.items()}, output[number]


def _call_hooks(module: nn.Module, call: _Call) -> None:
    """As calling the module would; what hooks return is not used."""
    given, named, output = call
    for key, before in module._forward_pre_hooks.items():
        arguments = (given, named) if key in module._forward_pre_hooks_with_kwargs else (given,)
        before(module, *arguments)
    for key, after in module._forward_hooks.items():
        arguments = (given, named) if key in module._forward_hooks_with_kwargs else (given,)
        after(module, *arguments, output)


def _correction(beta: float, age: Tensor) -> Tensor:
    """1 - beta ** age, without cancellation."""
    return -torch.expm1(age * (math.log(beta) if beta else -math.inf))


def _per_network(values: Tensor, parameter: Tensor) -> Tensor:
    return values.to(parameter.dtype).view(-1, *[1] * (parameter.dim() - 1))


def _grad(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
