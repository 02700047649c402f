"""The optimizers by name, and one step of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from weight_evolution import UnitAdamW

from .config import TrainingConfig
from .errors import UserError, user_errors

_AMP_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

ExtraLoss = Callable[[Tensor, Tensor], Tensor]
"""Of the images and their logits."""


def make_optimizer(config: TrainingConfig, model: nn.Module) -> Optimizer:
    """Of all parameters, with the configuration's options.

    Raises:
        UserError: unit-adamw of parameters that it does not take.
    """
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            model.parameters(),
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )
    kind: type[torch.optim.AdamW | UnitAdamW] = torch.optim.AdamW if config.optimizer == "adamw" else UnitAdamW
    with user_errors(f"--optimizer {config.optimizer}: "):
        return kind(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)


class TrainingStep:
    """Forward, backward and a step of the optimizer, in the precision and memory format of the configuration.

    Under ``amp`` the network alone runs in the lower precision; losses, those of the methods, too, are float32. With
    fp16 they are scaled, and steps with gradients that are not finite are left out (torch.amp.GradScaler).

    Args:
        config: says how.
        model: already in the memory format, and placed on the ranks; the methods have attached what they attach.
        optimizer: of its parameters.
        device: of the model.

    Raises:
        UserError: fp16 without a CUDA device.
    """

    def __init__(self, config: TrainingConfig, model: nn.Module, optimizer: Optimizer, device: torch.device) -> None:
        if config.amp == "fp16" and device.type != "cuda":
            raise UserError("--amp fp16 needs a CUDA device; use --amp bf16")
        self._forward = torch.compile(model) if config.compile else model
        self._optimizer = optimizer
        self._memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
        self._precision: dict[str, Any] = {
            "device_type": device.type,
            "dtype": _AMP_DTYPES.get(config.amp or ""),
            "enabled": config.amp is not None,
        }
        self._scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "fp16")

    def __call__(
        self, images: Tensor, targets: Tensor, extra_losses: Sequence[ExtraLoss], weight: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """One batch.

        Args:
            images: float32 [N, C, H, W], normalized.
            targets: int64 [N].
            extra_losses: added to the cross-entropy.
            weight: of the sum's gradients.

        Returns:
            Logits [N, classes] and the cross-entropy alone.
        """
        images = images.contiguous(memory_format=self._memory_format)
        with torch.autocast(**self._precision):
            logits = self._forward(images)
        logits = logits.float()
        loss = functional.cross_entropy(logits, targets)
        self._optimizer.zero_grad(set_to_none=True)
        total = sum((extra(images, logits) for extra in extra_losses), loss)
        self._scaler.scale(total if weight == 1 else total * weight).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        return logits.detach(), loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """Of the scaler; empty without fp16."""
        return self._scaler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume where `state_dict` was taken."""
        if state or self._scaler.is_enabled():
            self._scaler.load_state_dict(dict(state))
