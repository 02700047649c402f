"""The operators of unit reactivation on ResNet-18, for a campaign: what each is called with, and is it right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import we_kernels as wk
from benchmarks.reactivation import WIDTHS, Kernel, Network, resnet18
from benchmarks.verify import WrongResultError
from weight_evolution import UnitAdamW

BATCH, PIXELS = 32, 14
"""Of every layer's activation."""
THRESHOLD = 0.1
TOLERANCE = 1e-4
RESET_EVERY = 16
"""Rows of a parameter, of which the first was reset."""


@dataclass
class UnitOperator:
    """One operator with its arguments."""

    call: Callable[[], object]
    """Can be captured once it has run."""
    written: dict[str, Tensor]
    """By name: compared with what the ``torch`` backend writes."""


def unit_operators(model: str, device: torch.device) -> dict[str, Callable[[], UnitOperator]]:
    """By name; each makes the same operands at every call.

    Args:
        model: a key of `WIDTHS`.
        device: of all operands.
    """
    sizes = [width for width in WIDTHS[model] for _ in range(2)]  # the inner units of two blocks of each width
    return {
        "reactivate_": lambda: _reactivate(model, device),
        "dormant_units": lambda: _dormant(sizes, device),
        "unit_adamw_": lambda: _adamw(model, device),
        "add_channel_activity_": lambda: _activity(sizes, device),
    }


def verify(make: Callable[[], UnitOperator], backend: str) -> None:
    """One call on each side, from the same operands.

    Raises:
        WrongResultError: names the tensor.
    """
    ours, wanted = make(), make()
    for operator, name in ((ours, backend), (wanted, "torch")):
        with wk.use_backend(name):
            operator.call()
    for name, tensor in ours.written.items():
        if not torch.allclose(tensor.double(), wanted.written[name].double(), rtol=TOLERANCE, atol=1e-7):
            raise WrongResultError(f"{name}: not what the torch backend gives")


def _reactivate(model: str, device: torch.device) -> UnitOperator:
    network = Network(model, device)
    step = torch.zeros(1, dtype=torch.int64, device=device)
    plan = Kernel(network, None, reset=False).plan
    return UnitOperator(lambda: wk.reactivate_(plan, network.revived, seed=0, step=step), network.tensors())


def _dormant(sizes: list[int], device: torch.device) -> UnitOperator:
    activity = torch.rand(sum(sizes), generator=torch.Generator().manual_seed(3)).square().to(device)
    found = torch.zeros(sum(sizes), dtype=torch.bool, device=device)
    return UnitOperator(lambda: found.copy_(wk.dormant_units(activity, sizes, THRESHOLD)), {"mask": found})


def _adamw(name: str, device: torch.device) -> UnitOperator:
    model = resnet18(name).to(device)
    params = list(model.parameters())
    generator = torch.Generator().manual_seed(4)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator).to(device)
    optimizer = UnitAdamW(params, lr=1e-3, capturable=device.type == "cuda")
    optimizer.step()
    for param in params:
        optimizer.reset_units_(param, torch.arange(len(param), device=device) % RESET_EVERY == 0)
    return UnitOperator(optimizer.step, {name: param.data for name, param in model.named_parameters()})


def _activity(sizes: list[int], device: torch.device) -> UnitOperator:
    generator = torch.Generator().manual_seed(5)
    values = [torch.randn(BATCH, units, PIXELS, PIXELS, generator=generator).to(device) for units in sizes]
    sums = [torch.zeros(units, dtype=torch.float64, device=device) for units in sizes]

    def add() -> None:
        for own, activation in zip(sums, values, strict=True):
            wk.add_channel_activity_(own, activation)

    return UnitOperator(add, {f"layer {number}": own for number, own in enumerate(sums)})
