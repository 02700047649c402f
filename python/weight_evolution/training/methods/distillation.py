"""Distillation as a method of the trainer."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from weight_evolution import distillation_loss
from weight_evolution.grafting import PUBLISHED_TEMPERATURE

from ..arguments import positive_float
from ..checkpoint import read_checkpoint
from ..errors import UserError
from ..models import check_output, make_model
from .base import Method


class DistillationMethod(Method):
    """`distillation_loss` from fixed teachers at every step of the optimizer; with grafting it is grafting+."""

    name = "distillation"

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, options: Mapping[str, Any], input_size: Sequence[int]
    ) -> None:
        super().__init__(model, optimizer, options, input_size)
        self._temperature: float = options["temperature"]
        device = next(model.parameters()).device
        self.teachers = [load_teacher(Path(path), options["data"], input_size, device) for path in options["teachers"]]
        self._digests = [_digest(teacher) for teacher in self.teachers]
        self._sum = torch.zeros((), dtype=torch.float64, device=device)
        self._batches = 0

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        group = parser.add_argument_group(
            "distillation (--teachers; with --method grafting it is grafting+, with baseline distillation alone)"
        )
        group.add_argument(
            "--teachers", nargs="+", metavar="CKPT", help="checkpoints of train, averaged in probability"
        )
        group.add_argument(
            "--distillation-temperature",
            type=positive_float,
            default=PUBLISHED_TEMPERATURE,
            metavar="T",
            help="default %(default)s",
        )

    @classmethod
    def options(cls, arguments: argparse.Namespace) -> dict[str, Any]:
        if not arguments.teachers:
            raise UserError("distillation needs --teachers CKPT [CKPT ...], checkpoints of weight-evolution train")
        return {
            "teachers": list(arguments.teachers),
            "temperature": arguments.distillation_temperature,
            "data": arguments.data,
        }

    def extra_loss(self, images: Tensor, logits: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_logits = [teacher(images) for teacher in self.teachers]
        loss = distillation_loss(logits, teacher_logits, self._temperature)
        self._sum += loss.detach()
        self._batches += 1
        return loss

    def after_epoch(self, epoch: int) -> dict[str, float]:
        mean = float(self._sum) / max(self._batches, 1)
        self._sum.zero_()
        self._batches = 0
        return {"distillation_loss": mean}

    def state_dict(self) -> dict[str, Any]:
        return {"teachers": list(self._digests)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["teachers"] != self._digests:
            raise ValueError("the teachers' weights are not those that the run began with")


def load_teacher(path: Path, data: str, input_size: Sequence[int], device: torch.device) -> nn.Module:
    """The network of a checkpoint, in eval mode and without gradients.

    Raises:
        UserError: it cannot be read, or was trained on another data set.
    """
    state = read_checkpoint(path, device)
    name, of = state["config"]["model"], state["config"]["data"]
    if of != data:
        raise UserError(f"--teachers: {path} was trained on {of}, this run is on {data}")
    teacher = make_model(name, state["in_channels"], state["num_classes"]).to(device)
    try:
        teacher.load_state_dict(state["model"])
    except RuntimeError as error:
        raise UserError(f"--teachers: {path} does not fit its own model: {str(error).splitlines()[0]}") from None
    check_output(teacher, name, torch.Size(input_size), state["num_classes"])
    return teacher.eval().requires_grad_(False)


def _digest(model: nn.Module) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
