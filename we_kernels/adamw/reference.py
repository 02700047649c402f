"""Adam and AdamW in plain PyTorch: the operations of torch.optim's foreach form, in their order."""

from __future__ import annotations

import torch
from torch import Tensor

from .rule import AdamwRule, AdamwTensors, correction_at, lr_of, steps_of


def unit_adamw_(tensors: AdamwTensors, rule: AdamwRule) -> None:
    """torch.optim.Adam(foreach=True), operation by operation; elements that were reset have their own correction."""
    lr, maxima = lr_of(rule), tensors.max_exp_avg_sqs
    for i, (param, step) in enumerate(zip(tensors.params, steps_of(tensors), strict=True)):
        grad, mean, square = tensors.grads[i], tensors.exp_avgs[i], tensors.exp_avg_sqs[i]
        if rule.maximize:
            grad = grad.neg()
        # The foreach forms round otherwise than those of single tensors in float16 and bfloat16.
        if rule.weight_decay != 0 and rule.decoupled:
            torch._foreach_mul_([param], 1 - lr * rule.weight_decay)
        elif rule.weight_decay != 0:
            grad = grad.add(param, alpha=rule.weight_decay)
        torch._foreach_lerp_([mean], [grad], 1 - rule.beta1)
        torch._foreach_mul_([square], rule.beta2)
        torch._foreach_addcmul_([square], [grad], [grad], 1 - rule.beta2)
        if maxima:
            torch._foreach_maximum_([maxima[i]], [square])
        root = (maxima[i] if maxima else square).sqrt()
        aged = _aged(tensors, i, step, lr, rule)
        moved = None if aged is None else _moved(param, mean, root, *aged[1:], eps=rule.eps)
        plain = correction_at(step, lr, rule)
        torch._foreach_div_([root], [plain.root])
        torch._foreach_add_([root], rule.eps)
        torch._foreach_addcdiv_([param], [mean], [root], [plain.step_size])
        if aged is not None and moved is not None:
            param.copy_(torch.where(aged[0], moved, param))


def _moved(param: Tensor, mean: Tensor, root: Tensor, step_size: Tensor, correction: Tensor, *, eps: float) -> Tensor:
    """The last three operations, with a correction for each element."""
    wide, dtype = step_size.dtype, param.dtype
    denominator = (root.to(wide) / correction).to(dtype)
    torch._foreach_add_([denominator], eps)
    return (param.to(wide) + step_size * mean.to(wide) / denominator.to(wide)).to(dtype)


def _aged(
    tensors: AdamwTensors, i: int, step: float, lr: float, rule: AdamwRule
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Which elements are younger than the step counter, step sizes and corrections; None where nothing was reset."""
    param, groups = tensors.params[i], tensors.groups[i]
    d0, d1 = param.shape[0], param.shape[1] if param.dim() > 1 else 1
    rows, columns = (x[i].tolist() if x else [] for x in (tensors.row_resets, tensors.column_resets))
    if not rows and not columns:
        return None
    of_rows = _corrections(rows or [0.0] * d0, step, lr, rule).view(3, groups, d0 // groups, 1)
    of_columns = _corrections(columns or [0.0] * (groups * d1), step, lr, rule).view(3, groups, 1, d1)
    shape = (3, d0, d1, *[1] * (param.dim() - 2))[: 1 + param.dim()]
    ages, step_sizes, roots = torch.minimum(of_rows, of_columns).reshape(shape).to(param.device)
    wide = torch.float64 if param.dtype == torch.float64 else torch.float32
    return ages < step, step_sizes.to(wide), roots.to(wide)


def _corrections(resets: list[float], step: float, lr: float, rule: AdamwRule) -> Tensor:
    """float64 [3, N]: age, step size and root's divisor of each row or column."""
    ages = [max(step - reset, 1.0) for reset in resets]
    found = [(age, *correction_at(age, lr, rule)) for age in ages]
    return torch.tensor(found, dtype=torch.float64, device="cpu").T.contiguous()
