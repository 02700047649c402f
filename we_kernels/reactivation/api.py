"""Which units are dormant, and fresh weights for those that are to start anew."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import check_choice, check_count, check_integer, check_number, check_vector
from ..runtime.transfer import Place, upload
from . import operators
from .plan import UnitPlan
from .rule import DrawRule

SCALES = ("layer", "initial")


@torch.no_grad()
def dormant_units(activity: Tensor, sizes: Sequence[int], threshold: float, *, parents: Tensor | None = None) -> Tensor:
    """Which units are dormant: bool [U], those with ``a <= threshold * (mean of a over the layer + 1e-9)``.

    A layer in which all are 0 is dormant as a whole. A NaN is not dormant, nor is any unit of a layer whose mean is not
    finite. Computed in float64. Source: Sokar et al., "The Dormant Neuron Phenomenon in Deep Reinforcement Learning",
    ICML 2023, definition 3.1.

    Args:
        activity: float32 [U], mean absolute activation of every unit, layer by layer.
        sizes: number of units of each layer.
        threshold: finite, from 0.
        parents: int32 [U] on the device of ``activity``: for each unit another one, of an earlier layer, with which it
            is dormant, too; -1 for none. A depthwise convolution's channel has the one that it reads as its parent.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, size, dtype, device or range.
    """
    sizes = [check_integer(size, f"sizes[{i}]") for i, size in enumerate(sizes)]
    if min(sizes, default=1) < 1:
        raise ValueError(f"sizes must be positive, got {sizes}")
    if not isinstance(activity, Tensor):
        raise TypeError(f"activity must be a tensor, got {type(activity).__name__}")
    check_vector(activity, "activity", sum(sizes), torch.float32, activity.device)
    number = check_number(threshold, "threshold")
    if not 0 <= number < float("inf"):
        raise ValueError(f"threshold must be a finite number from 0, got {number}")
    if parents is None:
        parents = torch.empty(0, dtype=torch.int32, device=activity.device)
    else:
        check_vector(parents, "parents", sum(sizes), torch.int32, activity.device)
    if not sizes:
        return torch.empty(0, dtype=torch.bool, device=activity.device)
    dormant: Tensor = operators.dormant_units(activity.contiguous(), sizes, parents.contiguous(), number)
    return dormant


@torch.no_grad()
def reactivate_(
    plan: UnitPlan,
    revived: Tensor,
    *,
    seed: int,
    step: int | Tensor,
    scale: str | Tensor = "layer",
    given: Sequence[float] | Tensor = (),
) -> None:
    """Let units start anew: write to all rows and columns that the plan gives to them, in place, as it says.

    - "keep": nothing is written;
    - "zero", "one": 0, 1;
    - "draw": random weights, uniform in +- 1 / sqrt(D1 * K) as PyTorch initialises convolutions and Linears, scaled;
    - "mean": the mean of the tensor's finite elements that are not written; of all finite ones if none is left;
    - "mean or one": the same, but 1 if none is left;
    - "given": this tensor's number in ``given``, for its rows and columns.

    Where a row and a column that are both written meet, "zero" goes before all, and then the row's value before the
    column's. All else keeps its bits. Random numbers are Philox4x32-10 of ``seed``, ``step``, the position of the
    tensor among those with "draw", and the element: the same on every backend, device and rank. Nothing waits for the
    device. Source: Sokar et al., ICML 2023 (arXiv 2302.12902); scale and optimizer state are this package's own.

    Args:
        plan: the tensors.
        revived: bool [units] on their device.
        seed: from 0 to 2^63 - 1.
        step: number of the call, from 0 to 2^63 - 1, or an int64 [1] tensor on the tensors' device.
        scale: "layer": each drawn unit's L1 norm becomes the mean of those of the tensor's units that are not revived;
            "initial": as drawn; or float32 [plan.entries] on the tensors' device: the norm of each row or column, as
            drawn where it is not above 0.
        given: for each tensor with "given", in order, its number; or float32 of so many on the tensors' device.

    Raises:
        TypeError, ValueError: an argument of the wrong kind, size, dtype, device or range; nothing is changed.
    """
    if not isinstance(plan, UnitPlan):
        raise TypeError(f"plan must be a UnitPlan, got {type(plan).__name__}")
    view, device = plan.view(), plan.device
    check_vector(revived, "revived", plan.units, torch.bool, device)
    seed = check_count(seed, "seed")
    if isinstance(step, Tensor):
        check_vector(step, "step", 1, torch.int64, device)
    else:
        step = torch.full((1,), check_count(step, "step"), dtype=torch.int64, device=device)
    targets = None
    if isinstance(scale, Tensor):
        check_vector(scale, "scale", plan.entries, torch.float32, device)
        targets = scale.contiguous()
    else:
        check_choice(scale, "scale", SCALES)
    numbers = _check_given(given, plan.given, device)
    if view.tensors:
        rule = DrawRule(scale == "layer" if targets is None else True, targets, seed, step)
        operators.reactivate_(view, revived.contiguous(), numbers, rule)


def _check_given(given: Sequence[float] | Tensor, count: int, device: torch.device) -> Tensor:
    """float32 [count] on ``device``."""
    if isinstance(given, Tensor):
        check_vector(given, "given", count, torch.float32, device)
        return given.contiguous()
    values = tuple(check_number(value, f"given[{i}]") for i, value in enumerate(given))
    if len(values) != count:
        raise ValueError(f'given must have one number per tensor with "given" ({count}), got {len(values)}')
    return upload(values, torch.float32, Place.current(device))
