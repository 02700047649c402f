"""Distillation from fixed teachers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ..arguments import check_positive

PUBLISHED_TEMPERATURE = 2.0


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor | Sequence[Tensor], temperature: float = PUBLISHED_TEMPERATURE
) -> Tensor:
    """``-tau^2 * sum_k pbar_k * log p_student,k``, mean over the batch; a scalar to add to the cross-entropy.

    Both are softened by the temperature tau; pbar is the mean of the teachers' probabilities. No gradient flows into
    the teachers; still run them under ``torch.no_grad()``, to save their memory. float16 and bfloat16 are computed in
    float32, which the result then has. Source: Meng et al., "Filter Grafting for Deep Neural Networks: Reason, Method,
    and Cultivation" (arXiv 2004.12311).

    Args:
        student_logits: [N, classes].
        teacher_logits: [N, classes] of one teacher, or a list of them.
        temperature: tau, positive.

    Raises:
        TypeError, ValueError: name the argument that is not of this kind, shape, dtype, device or range.
    """
    teachers = [teacher_logits] if isinstance(teacher_logits, Tensor) else teacher_logits
    _check(student_logits, teachers, temperature)
    dtype = torch.float64 if student_logits.dtype == torch.float64 else torch.float32
    with torch.no_grad():
        target = torch.stack([torch.softmax(t.detach().to(dtype) / temperature, 1) for t in teachers]).mean(0)
    log_student = functional.log_softmax(student_logits.to(dtype) / temperature, 1)
    return -(temperature**2) * (target * log_student).sum(1).mean()


def _check(student: Tensor, teachers: Sequence[Tensor], temperature: float) -> None:
    _check_logits(student, "student_logits")
    if student.dim() != 2 or 0 in student.shape:
        raise ValueError(f"student_logits must be [N, classes], not empty, got shape {tuple(student.shape)}")
    if not isinstance(teachers, Sequence):
        raise TypeError(f"teacher_logits must be a tensor or a list of tensors, got {type(teachers).__name__}")
    if not teachers:
        raise ValueError("teacher_logits is empty; pass the logits of at least one teacher")
    for i, teacher in enumerate(teachers):
        name = f"teacher_logits[{i}]" if len(teachers) > 1 else "teacher_logits"
        _check_logits(teacher, name)
        if teacher.shape != student.shape:
            raise ValueError(
                f"{name} must have the shape of student_logits, {tuple(student.shape)}, got {tuple(teacher.shape)}"
            )
        if teacher.device != student.device:
            raise ValueError(f"{name} is on {teacher.device} but student_logits on {student.device}; move one of them")
    check_positive(temperature, "temperature")


def _check_logits(logits: Tensor, name: str) -> None:
    if not isinstance(logits, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(logits).__name__}")
    if not logits.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor of logits, got {logits.dtype}")
