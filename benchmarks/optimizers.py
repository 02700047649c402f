"""What a training step pays for its optimizer on the same weights: the yardstick for a step that runs as often."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.results import ADAMW, SGD


def optimizer_steps(weights: list[Tensor]) -> dict[str, Callable[[], object]]:
    """Steps of optimizers over copies of ``weights`` with random gradients, by name; they have stepped once."""
    parameters = [torch.nn.Parameter(weight.clone()) for weight in weights]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    on_gpu = weights[0].is_cuda
    optimizers: dict[str, torch.optim.Optimizer] = {
        ADAMW: torch.optim.AdamW(parameters, fused=True, capturable=on_gpu),
        SGD: torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, foreach=True),
    }
    for optimizer in optimizers.values():
        optimizer.step()
    return {name: optimizer.step for name, optimizer in optimizers.items()}


def bytes_of_a_step(name: str, weights: list[Tensor]) -> int:
    """Weights read and written, gradients read, moments read and written."""
    moved = 7 if name == ADAMW else 5
    return moved * sum(weight.numel() * weight.element_size() for weight in weights)
