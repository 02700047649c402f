"""`Stack`: many networks of one architecture, trained as one.

A small network takes longer to call than to compute. Here the parameters of all networks are one tensor [R, ...] each,
a pass through all of them is one pass (`experiments.stacked_passes` has three forms), and so is the optimizer's step.
The networks themselves stay: their parameters, gradients and optimizer states are views of the stacked ones, and their
forward hooks and their optimizers' step hooks are called with their part, so that methods work on them as on any
network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.conv import _ConvNd
from torch.optim import Optimizer

from experiments.stacked_passes import FORMS
from experiments.stacked_steps import AdamUpdate, SgdUpdate, call_step_hooks, grad_of, has_step_hooks, update_of


class Stack:
    """R networks that differ in weights, data, learning rates, weight decays and methods only.

        networks = [make_network() for _ in range(replicas)]
        optimizers = [torch.optim.Adam(network.parameters(), lr) for network in networks]
        reactivations = [UnitReactivation(*pair) for pair in zip(networks, optimizers)]
        stack = Stack(networks, optimizers)
        for images, labels in batches:  # [R, N, ...], [R, N]
            stack.backward(images, labels)
            stack.step()
            for reactivation in reactivations:
                reactivation.step()

    Each network is trained as it would be alone, up to rounding and what dropout draws. Learning rates and weight
    decays are read at every step.

    Args:
        networks: of one architecture, which the form can run, on one device; none of their parameters is frozen.
        optimizers: one for each, all torch.optim.Adam, AdamW, SGD or all UnitAdamW, with all of the network's
            parameters, in any groups, not yet used, and equal in all but learning rates and weight decays.
        own_steps: let each optimizer make its own step, of whatever class and options it is; for networks that are so
            large that the calls count for little, where torch.optim's fused steps are faster than the stack's.
        form: of the passes, one of `experiments.stacked_passes.FORMS`.

    Raises:
        ValueError: they are not alike, or an option of the optimizers or a layer is not supported; nothing is changed.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        optimizers: Sequence[Optimizer],
        *,
        own_steps: bool = False,
        form: str = "vmap",
    ) -> None:
        if not networks or len(networks) != len(optimizers):
            raise ValueError(f"optimizers must be one for each of the networks: {len(optimizers)}, {len(networks)}")
        if form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
        self.networks, self._optimizers = list(networks), list(optimizers)
        named = [dict(network.named_parameters()) for network in networks]
        _check_alike(networks)
        update = None if own_steps else update_of(optimizers, named)
        self._passes = FORMS[form](self.networks)
        self._buffers = _stacked([dict(network.named_buffers()) for network in networks])
        self._parameters = _stacked(named)
        for name, parameter in self._parameters.items():
            parameter.grad = torch.zeros_like(parameter)
            for own, grad in zip(named, parameter.grad, strict=True):
                own[name].grad = grad
            parameter.requires_grad_()
        self._update: AdamUpdate | SgdUpdate | None = None
        if update is not None:
            self._update = update(self._parameters, named, self._optimizers, _groups_of(networks[0]))

    def forward(self, images: Tensor) -> Tensor:
        """Outputs [R, N, ...] for images [R, N, ...], in training mode; the networks' forward hooks are called."""
        return self._passes.train(self._parameters, self._buffers, images)

    @torch.no_grad()
    def predict(self, images: Tensor, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """Outputs in evaluation mode; no hook is called.

        Args:
            parameters: those of `copy_parameters`, instead of the present ones.
        """
        used = self._parameters if parameters is None else dict(parameters)
        return self._passes.evaluate(used, self._buffers, images)

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
        torch._foreach_copy_([grad_of(parameter) for parameter in parameters], gradients)
        return outputs.detach()

    def step(self) -> None:
        """What each optimizer's step would do, its step hooks included."""
        if self._update is None:
            for optimizer in self._optimizers:
                optimizer.step()
            return
        call_step_hooks(self._optimizers, "pre")
        self.read_rates()
        self.update()
        call_step_hooks(self._optimizers, "post")

    def read_rates(self) -> None:
        """Take learning rates and weight decays from the optimizers, for the next `update`."""
        assert self._update is not None
        self._update.rates.read()

    @torch.no_grad()
    def update(self) -> None:
        """The part of a step that is the same work every time, without hooks, with the rates that were read last."""
        assert self._update is not None
        self._update()

    @property
    def stepped(self) -> bool:
        """Whether any optimizer has step hooks."""
        return any(map(has_step_hooks, self._optimizers))

    @property
    def watched(self) -> bool:
        """Whether any module has forward hooks."""
        return any(
            module._forward_hooks or module._forward_pre_hooks
            for network in self.networks
            for module in network.modules()
        )


def _check_alike(networks: Sequence[nn.Module]) -> None:
    described = []
    for network in networks:
        tensors = [*network.named_parameters(), *network.named_buffers()]
        described.append([(name, x.shape, x.dtype, x.device, x.requires_grad) for name, x in tensors])
        if not all(parameter.requires_grad for parameter in network.parameters()):
            raise ValueError("networks must have no frozen parameters")
    for number, own in enumerate(described):
        if own != described[0]:
            raise ValueError(f"networks must be of one architecture and dtype, but networks[{number}] is another")


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
