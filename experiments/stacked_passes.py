"""Passes through all networks of a stack, in three forms; which is fastest depends on network and machine.

"vmap": by torch.func.vmap, grouped convolutions and batched products: for networks that take longer to call than to
compute. "each": one network after the other, by itself: for larger ones on a CPU, whose convolutions gain nothing from
company. "products": for plain convolutional networks on a GPU, convolutions as one batched matrix product each
(`experiments.stacked_products`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from experiments.stacked_products import Products

Tensors = Mapping[str, Tensor]
Call = tuple[tuple[Tensor, ...], dict[str, Tensor], Tensor]
"""Arguments of a module's forward, and its output."""


class _Vmap:
    """One pass of a template, over stacked parameters and buffers."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self._modules = [dict(network.named_modules()) for network in networks]
        self._template = copy.deepcopy(networks[0])

    def train(self, parameters: Tensors, buffers: Tensors, images: Tensor) -> Tensor:
        """In training mode, with hooks."""
        self._template.train()
        outputs, calls = self._run(parameters, buffers, images, watched_names(self._modules))
        call_hooks(self._modules, calls)
        return outputs

    def evaluate(self, parameters: Tensors, buffers: Tensors, images: Tensor) -> Tensor:
        """In evaluation mode, without."""
        self._template.eval()
        return self._run(parameters, buffers, images, ())[0]

    def _run(
        self, parameters: Tensors, buffers: Tensors, images: Tensor, watched: Iterable[str]
    ) -> tuple[Tensor, dict[str, Call]]:
        """Outputs, and the calls of the modules that are watched."""
        calls: dict[str, Call] = {}
        modules = dict(self._template.named_modules())
        handles = [
            modules[name].register_forward_hook(_recorder(calls, name), with_kwargs=True) for name in sorted(watched)
        ]

        def run(weights: Any, own_buffers: Any, own: Tensor) -> tuple[Tensor, dict[str, Call]]:
            outputs: Tensor = functional_call(self._template, (weights, own_buffers), (own,))
            return outputs, calls

        try:
            result: tuple[Tensor, dict[str, Call]] = vmap(run, randomness="different")(
                dict(parameters), dict(buffers), images
            )
        finally:
            for handle in handles:
                handle.remove()
        return result


class _Each:
    """A pass of every network; hooks are called by the networks."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self._networks = networks
        self._silent = copy.deepcopy(networks[0]).eval()

    def train(self, parameters: Tensors, buffers: Tensors, images: Tensor) -> Tensor:
        """In training mode, with hooks."""
        parts = {name: parameter.unbind() for name, parameter in parameters.items()}  # so that gradients arrive there
        outputs = []
        for number, (network, own) in enumerate(zip(self._networks, images, strict=True)):
            weights = {name: part[number] for name, part in parts.items()}
            outputs.append(functional_call(network.train(), weights, (_as_fastest(own),)))
        return torch.stack(outputs)

    def evaluate(self, parameters: Tensors, buffers: Tensors, images: Tensor) -> Tensor:
        """In evaluation mode, without."""
        outputs = []
        for number, own in enumerate(images):
            state = {name: tensor[number] for name, tensor in {**parameters, **buffers}.items()}
            outputs.append(functional_call(self._silent, state, (_as_fastest(own),)))
        return torch.stack(outputs)


class _Products:
    """Batched products, with activations [R, C, N, H, W]."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        self._modules = [dict(network.named_modules()) for network in networks]
        self._products = Products(networks[0])

    def train(self, parameters: Tensors, buffers: Tensors, images: Tensor) -> Tensor:
        """In training mode, with hooks."""
        watched = watched_names(self._modules)
        outputs, calls = self._products(parameters, buffers, images, training=True, watched=watched)
        call_hooks(self._modules, {name: ((given,), {}, output) for name, (given, output) in calls.items()})
        return outputs

    def evaluate(self, parameters: Tensors, buffers: Tensors, images: Tensor) -> Tensor:
        """In evaluation mode, without."""
        return self._products(parameters, buffers, images, training=False, watched=())[0]


FORMS: dict[str, type[_Vmap] | type[_Each] | type[_Products]] = {"vmap": _Vmap, "each": _Each, "products": _Products}


def watched_names(modules: Sequence[Mapping[str, nn.Module]]) -> set[str]:
    """Of modules that have forward hooks in any network."""
    return {
        name for own in modules for name, module in own.items() if module._forward_hooks or module._forward_pre_hooks
    }


def call_hooks(modules: Sequence[Mapping[str, nn.Module]], calls: Mapping[str, Call]) -> None:
    """The hooks of all networks with their parts, as calling the modules would; what they return is not used."""
    for number, own in enumerate(modules):
        for name, (given, named, output) in calls.items():
            if own[name]._forward_hooks or own[name]._forward_pre_hooks:
                arguments = tuple(x[number] for x in given)
                _call_hooks(own[name], arguments, {key: x[number] for key, x in named.items()}, output[number])


def _call_hooks(module: nn.Module, given: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor) -> None:
    for key, before in module._forward_pre_hooks.items():
        arguments = (given, named) if key in module._forward_pre_hooks_with_kwargs else (given,)
        before(module, *arguments)
    for key, after in module._forward_hooks.items():
        arguments = (given, named) if key in module._forward_hooks_with_kwargs else (given,)
        after(module, *arguments, output)


def _recorder(calls: dict[str, Call], name: str) -> Callable[..., None]:
    def record(module: nn.Module, given: Any, named: Any, output: Tensor) -> None:
        calls[name] = given, named, output

    return record


def _as_fastest(images: Tensor) -> Tensor:
    """In the memory format in which convolutions are faster: 55 against 66 ms for a batch of the study's network."""
    return images.contiguous(memory_format=torch.channels_last) if images.dim() == 4 else images
