"""Adam and AdamW in which rows and columns of a tensor may be younger than the rest: the public function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from ..checks import check_integer, check_number, check_vector
from ..runtime.parameters import Shapes, check_finite, check_lengths, check_lr_tensor, check_parameters
from ..runtime.weights import check_addresses
from . import operators
from .rule import AdamwRule, AdamwTensors


@torch.no_grad()
def unit_adamw_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    max_exp_avg_sqs: Sequence[Tensor] | None,
    row_resets: Sequence[Tensor | None] | None,
    column_resets: Sequence[Tensor | None] | None,
    groups: int | Sequence[int],
    steps: Sequence[float] | Sequence[Tensor],
    *,
    lr: float | Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 1e-2,
    decoupled_weight_decay: bool = True,
    amsgrad: bool = False,
    maximize: bool = False,
) -> None:
    """One step of AdamW, or of Adam, on all parameters in one call, in place; each element has its own age.

    A tensor is seen as [D0, D1, K]; one of one dimension is [D0, 1, 1]. Element (r, c, k) belongs to row r and to
    column ``(r // (D0 / groups)) * D1 + c``: an input channel of a convolution of so many groups. Its age is the step's
    number less that of the last step before its row or column was reset, and at least 1; its bias corrections are
    ``1 - beta ** age``. Whoever marks a reset sets the moments of that row or column to 0.

    Where nothing was reset, an element gets the bits of ``torch.optim.AdamW(foreach=True)`` or ``Adam(foreach=True)``
    of the running PyTorch, on a CPU. Elements that were reset get, on a CPU, the bits of a fresh optimizer of that age.
    Gradients are only read. Sources: Kingma and Ba (arXiv 1412.6980), Loshchilov and Hutter (arXiv 1711.05101).

    Args:
        params: distinct tensors, float32, float64, float16 or bfloat16 (mixed if need be), any strides, of up to 5
            dimensions, all on one device.
        grads: one per parameter, of its shape, dtype and device, any strides.
        exp_avgs, exp_avg_sqs: the same; first and second moments.
        max_exp_avg_sqs: the same with ``amsgrad``, else not read.
        row_resets: float32 [D0] each, contiguous, on the parameters' device: the number of the step after which the row
            was reset, 0 for never. None for a parameter of which no row ever was; None for all.
        column_resets: float32 [groups * D1] each, likewise.
        groups: of each parameter, or of all; divides D0.
        steps: the number of this step for each parameter, from 1; or as float32 tensors of one element on the
            parameters' device, read there, so that they can change under a captured graph.
        lr: a number from 0, or a tensor of one element on the parameters' device (read there) or the CPU.
        betas, eps, weight_decay, amsgrad, maximize: as in torch.optim.AdamW.
        decoupled_weight_decay: False is Adam's weight decay, which is added to the gradient.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, size, dtype, device or range; nothing is changed.
    """
    params, grads, means, squares = list(params), list(grads), list(exp_avgs), list(exp_avg_sqs)
    maxima = list(max_exp_avg_sqs or ()) if amsgrad else []
    beta1, beta2 = _check_betas(betas)
    eps, weight_decay = _check_from_0(eps, "eps"), _check_from_0(weight_decay, "weight_decay")
    groups = list(groups) if isinstance(groups, Sequence) else [groups] * len(params)
    resets = {"row_resets": list(row_resets or ()), "column_resets": list(column_resets or ())}
    check_lengths(len(params), grads=grads, exp_avgs=means, exp_avg_sqs=squares, groups=groups, steps=steps)
    check_lengths(len(params), **{name: found for name, found in resets.items() if found})
    for i, count in enumerate(groups):
        check_integer(count, f"groups[{i}]")
    if amsgrad:
        check_lengths(len(params), max_exp_avg_sqs=maxima)
    if not params:
        return
    states = {"exp_avgs": means, "exp_avg_sqs": squares, "max_exp_avg_sqs": maxima}
    shapes, device = check_parameters(params, grads, states)
    host_steps, device_steps = _check_steps(steps, device)
    if isinstance(lr, Tensor):
        on_device = check_lr_tensor(lr, device).device == device != torch.device("cpu")
        device_lr, lr = (lr.detach(), 0.0) if on_device else (None, float(lr))
    else:
        device_lr = None
    lr = _check_from_0(lr, "lr")
    of_rows, of_columns = _check_resets(resets, shapes, groups, device)

    if () in shapes:
        params, grads, means, squares, maxima = (
            [x.view(1) if x.dim() == 0 else x for x in xs] for xs in (params, grads, means, squares, maxima)
        )
    lists = (params, grads, means, squares, maxima, of_rows, of_columns, groups, host_steps, device_steps)
    if any(0 in shape for shape in shapes):
        filled = [i for i, shape in enumerate(shapes) if 0 not in shape]
        lists = tuple([xs[i] for i in filled] if xs else xs for xs in lists)  # type: ignore[assignment]
    if lists[0]:
        decoupled = bool(decoupled_weight_decay)
        rule = AdamwRule(lr, device_lr, beta1, beta2, eps, weight_decay, decoupled, bool(maximize))
        operators.unit_adamw_(AdamwTensors(*lists), rule)


def _check_betas(betas: tuple[float, float]) -> tuple[float, float]:
    try:
        first, second = betas
    except (TypeError, ValueError):
        raise TypeError(f"betas must be two numbers, got {betas!r}") from None
    found = check_number(first, "betas[0]"), check_number(second, "betas[1]")
    for i, beta in enumerate(found):
        if not 0 <= beta < 1:
            raise ValueError(f"betas[{i}] must be in [0, 1), got {beta}")
    return found


def _check_from_0(value: float, name: str) -> float:
    number = check_finite(value, name)
    if number < 0:
        raise ValueError(f"{name} must be at least 0, got {number}")
    return number


def _check_steps(steps: Sequence[float] | Sequence[Tensor], device: torch.device) -> tuple[list[float], list[Tensor]]:
    """Numbers, or tensors on ``device``; the other list is empty."""
    tensors = [step for step in steps if isinstance(step, Tensor)]
    if not tensors:
        numbers = [check_finite(step, f"steps[{i}]") for i, step in enumerate(cast(Sequence[float], steps))]
        for i, number in enumerate(numbers):
            if number < 1:
                raise ValueError(f"steps[{i}] must be at least 1, the first step, got {number}")
        return numbers, []
    for i, step in enumerate(steps):
        if not isinstance(step, Tensor):
            raise TypeError(f"steps[{i}] must be a tensor, like the others, got {type(step).__name__}")
        if step.dtype != torch.float32 or step.numel() != 1:
            raise TypeError(f"steps[{i}] must be float32 of one element, got {step.dtype} {tuple(step.shape)}")
        if step.device != device:
            raise ValueError(f"steps[{i}] must be on {device}, like params, got {step.device}; or pass a number")
    if not torch.compiler.is_compiling():
        check_addresses(tensors, "steps")
    return [], tensors


def _check_resets(
    resets: dict[str, list[Tensor | None]], shapes: Shapes, groups: Sequence[int], device: torch.device
) -> tuple[list[Tensor], list[Tensor]]:
    """Of rows and of columns, with empty ones for None; no lists where all are."""
    if all(each is None for found in resets.values() for each in found):
        return [], []
    rows: list[int] = []
    columns: list[int] = []
    for i, (shape, count) in enumerate(zip(shapes, groups, strict=True)):
        d0, d1 = (*shape, 1, 1)[:2]
        if count < 1 or d0 % count != 0:
            raise ValueError(f"groups[{i}] must be a positive divisor of {d0}, the rows of params[{i}], got {count}")
        rows.append(d0)
        columns.append(count * d1)
    none = torch.zeros(0, dtype=torch.float32, device=device)
    return (
        _check_reset_vectors(resets["row_resets"], "row_resets", rows, none),
        _check_reset_vectors(resets["column_resets"], "column_resets", columns, none),
    )


def _check_reset_vectors(found: list[Tensor | None], name: str, sizes: list[int], none: Tensor) -> list[Tensor]:
    """With ``none`` for None; an empty list stays one."""
    checked = []
    for i in range(len(found)):  # torch.compile of PyTorch 2.7 does not follow enumerate here
        each = found[i]
        if each is None:
            checked.append(none)
            continue
        check_vector(each, f"{name}[{i}]", sizes[i], torch.float32, none.device)
        if not each.is_contiguous():
            raise ValueError(f"{name}[{i}] must be contiguous; pass its contiguous() copy")
        checked.append(each)
    if not torch.compiler.is_compiling():
        check_addresses(checked, name)
    return checked
