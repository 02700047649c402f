"""The arms of the study: what is done about a network while it is trained by SGD."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from weight_evolution import (
    AsynchronousUpdate,
    LowRankProjection,
    StagedSigmoid,
    UnitReactivation,
    WeightEvolution,
)

PRUNE_RATIO = 0.6
NARROWER = 0.66
"""Times the filters: as many parameters as the compact network of `PRUNE_RATIO`, to 2%."""
MEASURED = 8
"""Iterations before an acting step of which activity is measured."""
EVERY = 20
EMA_DECAY = 0.99


@dataclass(frozen=True)
class Training:
    """What a method is made for."""

    network: nn.Module
    optimizer: Optimizer
    epochs: int
    per_epoch: int
    """Iterations."""
    seed: int

    @property
    def iterations(self) -> int:
        """Of all epochs."""
        return self.epochs * self.per_epoch


class Method:
    """What is done to one network; the default is nothing."""

    def after_step(self, iteration: int) -> None:
        """Of the optimizer, ``iteration`` from 1."""

    def after_epoch(self, epoch: int) -> None:
        """``epoch`` from 0."""

    def result(self) -> nn.Module | None:
        """Another network than the trained one that is to be measured."""
        return None


@dataclass(frozen=True)
class Arm:
    """How one arm trains."""

    make: Callable[[Training], Method] | None = None
    decays_norms: bool = True
    """Whether weight decay acts on norms and biases."""
    grafting_strength: float | None = None
    """With a second network, the two grafted after every epoch but the last."""
    epochs: int = 1
    """Times the recipe's."""
    lr: float = 1.0
    """Times the chosen one."""
    width: float = 1.0
    """Times the condition's."""
    truncated: bool = False
    """After half of the epochs, with a schedule of its own for either half."""
    pruned: bool = True
    """In a condition of pruned networks."""

    @property
    def networks(self) -> int:
        """That are trained for one result."""
        return 1 if self.grafting_strength is None else 2

    @property
    def cost(self) -> int:
        """Passes through a network, times the baseline's, if it is as wide."""
        return self.networks * self.epochs


class _Evolution(Method):
    """After every epoch but the last, or after every n-th iteration but those of the last."""

    def __init__(self, training: Training, every: int | None = None, **options: Any) -> None:
        self._every = every
        steps = training.epochs if every is None else training.iterations
        self._evolution = WeightEvolution(
            training.network,
            optimizer=training.optimizer,
            epochs=steps,
            **{"schedule": StagedSigmoid.cifar(epochs=steps), **options},
            measure_after=False,
        )

    def after_step(self, iteration: int) -> None:
        if self._every is not None and iteration % self._every == 0:
            self._evolution.step(epoch=iteration - 1)

    def after_epoch(self, epoch: int) -> None:
        if self._every is None:
            self._evolution.step(epoch=epoch)


class _Once(Method):
    """Before the first step, then what another method does."""

    def __init__(self, training: Training, before: Callable[[Training], None], then: Any = None) -> None:
        before(training)
        self._then: Method = Method() if then is None else then(training)

    def after_step(self, iteration: int) -> None:
        self._then.after_step(iteration)

    def after_epoch(self, epoch: int) -> None:
        self._then.after_epoch(epoch)


class _Reactivation(Method):
    """At the end of every epoch but the last, by what was measured in the last iterations before."""

    def __init__(self, training: Training, **options: Any) -> None:
        self._last = training.iterations
        batches = min(MEASURED, training.per_epoch)
        self._reactivation = UnitReactivation(
            training.network,
            training.optimizer,
            every=training.per_epoch,
            batches=batches,
            seed=training.seed,
            **options,
        )

    def after_step(self, iteration: int) -> None:
        if iteration < self._last:
            self._reactivation.step()
        else:
            self._reactivation.detach()


class _Average(Method):
    """Of parameters and running statistics, exponential, from the first step on."""

    def __init__(self, training: Training) -> None:
        self._network = training.network
        self._averages: list[Tensor] | None = None

    @torch.no_grad()
    def after_step(self, iteration: int) -> None:
        tensors = _floating(self._network)
        if self._averages is None:
            self._averages = [tensor.clone() for tensor in tensors]
        else:
            torch._foreach_lerp_(self._averages, tensors, 1 - EMA_DECAY)

    @torch.no_grad()
    def result(self) -> nn.Module:
        network = copy.deepcopy(self._network)
        assert self._averages is not None
        torch._foreach_copy_(_floating(network), self._averages)
        return network


def _floating(network: nn.Module) -> list[Tensor]:
    return [t.detach() for t in (*network.parameters(), *network.buffers()) if t.is_floating_point()]


class _Asynchronous(Method):
    """By the step hooks of the optimizer."""

    def __init__(self, training: Training) -> None:
        self._update = AsynchronousUpdate(training.optimizer, training.network, 0.5, training.seed)


class _LowRank(Method):
    """After every epoch, or every n-th iteration; after the last epoch in any case."""

    def __init__(self, training: Training, every: int | None = None) -> None:
        self._every, self._last = every, training.epochs - 1
        self._projection = projection_of(training.network)

    def after_step(self, iteration: int) -> None:
        if self._every is not None and iteration % self._every == 0:
            self._projection.step()

    def after_epoch(self, epoch: int) -> None:
        if self._every is None or epoch == self._last:
            self._projection.step()

    def result(self) -> nn.Module:
        return self._projection.compact()


def projection_of(network: nn.Module, rectify_batch_norm: bool = True) -> LowRankProjection:
    """At the study's ratio."""
    return LowRankProjection(network, prune_ratio=PRUNE_RATIO, rectify_batch_norm=rectify_batch_norm)


def _constant(base_rate: float, epoch: int) -> float:
    return base_rate


def _evolve_once(training: Training) -> None:
    WeightEvolution(
        training.network, optimizer=training.optimizer, conv_rate=0.6, norm_scale_rate=0.6, schedule=_constant
    ).step()


@torch.no_grad()
def prune_(network: nn.Module) -> None:
    """Make half of each convolution's filters, those of the smallest L1 norms, and their norms 0.

    No gradient reaches them then: the output is 0, and so is the derivative of the ReLU there.
    The network must be an nn.Sequential of convolutions, each with its BatchNorm, if any, right behind it.
    """
    for conv, norm in _pairs(network):
        norms = conv.weight.abs().flatten(1).sum(1)
        dead = norms.argsort()[: len(norms) // 2]
        for tensor in (conv.weight, conv.bias, *((norm.weight, norm.bias) if norm is not None else ())):
            if tensor is not None:
                tensor[dead] = 0


def _new_filters_(training: Training) -> None:
    """Fresh weights for filters of zeros, as PyTorch draws them, with the mean L1 norm of the layer's others."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(training.seed)
        for conv, norm in _pairs(training.network):
            norms = conv.weight.abs().flatten(1).sum(1)
            dead, mean = norms == 0, norms[norms > 0].mean()
            fresh = nn.Conv2d(conv.in_channels, conv.out_channels, conv.weight.shape[2]).weight.to(conv.weight)
            fresh *= (mean / fresh.abs().flatten(1).sum(1))[:, None, None, None]
            conv.weight[dead] = fresh[dead]
            if norm is not None:
                norm.weight[dead] = norm.weight[~dead].mean()
                _write(norm.running_mean, dead, 0.0)
                _write(norm.running_var, dead, 1.0)


def _write(tensor: Tensor | None, where: Tensor, value: float) -> None:
    if tensor is not None:
        tensor[where] = value


def _pairs(network: nn.Module) -> list[tuple[nn.Conv2d, nn.BatchNorm2d | None]]:
    children = list(network.children())
    followed = zip(children, [*children[1:], None], strict=True)
    return [
        (layer, after if isinstance(after, nn.BatchNorm2d) else None)
        for layer, after in followed
        if isinstance(layer, nn.Conv2d)
    ]


BASELINE, NORMS_UNDECAYED = "baseline", "no weight decay on norms and biases"
_by_activity = partial(_Reactivation, importance="activity")
ARMS = {
    BASELINE: Arm(),
    NORMS_UNDECAYED: Arm(decays_norms=False),
    "average of weights": Arm(_Average),
    "weight evolution, paper rule": Arm(_Evolution),
    "weight evolution, released rule": Arm(partial(_Evolution, crossover="released")),
    "weight evolution, rate 0.6": Arm(partial(_Evolution, conv_rate=0.6)),
    "weight evolution, every 20 iterations": Arm(partial(_Evolution, every=EVERY)),
    "weight evolution, every 20 iterations, no shifts": Arm(partial(_Evolution, every=EVERY, norm_shift_rate=0.0)),
    "reactivation by activity": Arm(_by_activity),
    "reactivation by L1": Arm(partial(_Reactivation, importance="l1")),
    "weight evolution, rate 0.6, once": Arm(partial(_Once, before=_evolve_once)),
    "weight evolution, rate 0.6, every 20 iterations": Arm(
        partial(_Evolution, every=EVERY, conv_rate=0.6, norm_scale_rate=0.6, schedule=_constant)
    ),
    "random new filters, once": Arm(partial(_Once, before=_new_filters_)),
    "rate 0.6 once, then reactivation by activity": Arm(partial(_Once, before=_evolve_once, then=_by_activity)),
    "not pruned": Arm(pruned=False),
    "grafting": Arm(grafting_strength=0.4),
    "plain averaging": Arm(grafting_strength=0.0),
    "one network, twice as long": Arm(epochs=2),
    "asynchronous, rate 0.5": Arm(_Asynchronous),
    "half the rate": Arm(lr=0.5),
    "low-rank projection": Arm(_LowRank),
    "low-rank projection, every 250 iterations": Arm(partial(_LowRank, every=250)),
    "truncated, then fine-tuned": Arm(truncated=True),
    "narrower network": Arm(width=NARROWER),
}
