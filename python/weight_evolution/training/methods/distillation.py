"""Distillation as a method of the trainer."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weight_evolution import distillation_loss
from weight_evolution.grafting import PUBLISHED_TEMPERATURE

from ..arguments import option, positive_float
from ..checkpoint import read_checkpoint, restored_model
from ..errors import UserError, user_errors
from ..models import check_output
from .base import Method, Training


@dataclass(frozen=True)
class Options:
    """The options of the method, as a checkpoint holds them."""

    teachers: list[str] | None = option(
        None, "checkpoints of train, averaged in probability", flag="teachers", nargs="+", metavar="CKPT"
    )
    temperature: float = option(PUBLISHED_TEMPERATURE, type=positive_float, metavar="T")
    data: str = ""
    """Of the run."""


class DistillationMethod(Method):
    """`distillation_loss` from fixed teachers at every step of the optimizer; with grafting it is grafting+."""

    name = "distillation"
    kind = Options
    title = "distillation (--teachers; with --method grafting it is grafting+, with baseline distillation alone)"
    prefix = "distillation_"

    def __init__(self, training: Training, options: Mapping[str, Any]) -> None:
        super().__init__(training, options)
        self._temperature: float = options["temperature"]
        self.teachers = [
            load_teacher(Path(path), options["data"], training.input_size, self.device) for path in options["teachers"]
        ]
        self._digests = [_digest(teacher) for teacher in self.teachers]
        self._sum = torch.zeros((), dtype=torch.float64, device=self.device)
        self._batches = 0

    @classmethod
    def options(cls, arguments: argparse.Namespace) -> dict[str, Any]:
        if not arguments.teachers:
            raise UserError("distillation needs --teachers CKPT [CKPT ...], checkpoints of weight-evolution train")
        return super().options(arguments)

    def extra_loss(self, images: Tensor, logits: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_logits = [teacher(images) for teacher in self.teachers]
        loss = distillation_loss(logits, teacher_logits, self._temperature)
        self._sum += loss.detach()
        self._batches += 1
        return loss

    def after_epoch(self, epoch: int) -> dict[str, float]:
        ranks = self.training.ranks
        mean = float(ranks.sum(self._sum)) / ranks.count / max(self._batches, 1)
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
    state = read_checkpoint(path)
    if (of := state["config"]["data"]) != data:
        raise UserError(f"--teachers: {path} was trained on {of}, this run is on {data}")
    with user_errors(f"--teachers: {path} does not fit its own model: ", UserError):
        teacher = restored_model(state, device)
    check_output(teacher, state["config"]["model"], torch.Size(input_size), state["num_classes"])
    return teacher.eval().requires_grad_(False)


def _digest(model: nn.Module) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
