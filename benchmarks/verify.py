"""Is an implementation right? Asked before anything is timed: the speed of a wrong result is worth nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.baselines import Backend, Implementation
from benchmarks.case import Case

IMPORTANCE_TOLERANCE = 1e-5
"""Relative: float32 sums of up to 4,608 elements, added in different orders."""
BLEND_TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2.0**-8}
"""Relative to the tensor's largest magnitude, as for the recorded cases. Element crossover is exact."""


class WrongResultError(AssertionError):
    """An implementation does not compute what the reference computes."""


def verify(implementation: Implementation, case: Case) -> None:
    """Each operation and the whole step on ``case`` against the torch backend; leaves the case restored.

    Importances may differ in their last bits, by which two nearly equal filters may swap places. So donors are compared
    exactly from the same importances, and weights from the same donors.

    Raises:
        WrongResultError: names the implementation and the operation.
    """
    for check in checks(implementation, case).values():
        check()


def checks(implementation: Implementation, case: Case) -> dict[str, Callable[[], None]]:
    """As `verify`, by operation: "importance", "match", "crossover" and "step"; each leaves the case restored."""
    reference = Backend("torch")
    with reference.active():
        case.restore()
        importance = reference.importance(case)
        donor = reference.match(case, importance)
        reference.crossover(case, donor)
    crossed = [weight.clone() for weight in case.weights]
    case.restore()

    def check_importance() -> None:
        with implementation.active():
            _close(implementation.importance(case), importance, implementation, "importance")

    def check_match() -> None:
        with implementation.active():
            _equal(implementation.match(case, importance), donor, implementation, "match")
        case.restore()

    def check_crossover() -> None:
        with implementation.active():
            implementation.crossover(case, donor)
        _weights_close(case, crossed, implementation, "crossover")
        case.restore()

    def check_step() -> None:
        with implementation.active():
            own_importance, own_donor = implementation.step(case)
        evolved = [weight.clone() for weight in case.weights]
        counters = case.starvation.clone()
        case.restore()
        with reference.active():
            _close(own_importance, importance, implementation, "importance of the step")
            _equal(own_donor, reference.match(case, own_importance), implementation, "donors of the step")
            _equal(counters, case.starvation, implementation, "starvation counters of the step")
            reference.crossover(case, own_donor)
        _weights_close(case, evolved, implementation, "weights of the step")
        case.restore()

    return {
        "importance": check_importance,
        "match": check_match,
        "crossover": check_crossover,
        "step": check_step,
    }


def _close(result: Tensor, expected: Tensor, implementation: Implementation, what: str) -> None:
    if result.shape != expected.shape:
        raise WrongResultError(
            f"{implementation.name}: {what}: shape {tuple(result.shape)}, not {tuple(expected.shape)}"
        )
    wrong = int((~((result - expected).abs() <= IMPORTANCE_TOLERANCE * expected.abs())).sum())
    if wrong:
        raise WrongResultError(f"{implementation.name}: {what}: {wrong} of {expected.numel()} are off")


def _equal(result: Tensor, expected: Tensor, implementation: Implementation, what: str) -> None:
    wrong = int((result != expected).sum()) if result.shape == expected.shape else -1
    if wrong:
        raise WrongResultError(
            f"{implementation.name}: {what}: {wrong} of {expected.numel()} differ from the reference"
        )


def _weights_close(case: Case, weights: list[Tensor], implementation: Implementation, what: str) -> None:
    for index, (weight, expected) in enumerate(zip(case.weights, weights, strict=True)):
        blended = weight.dim() < 3 or weight.shape[2] == 1
        exact = not blended and not implementation.contracts
        allowed = 0.0 if exact else BLEND_TOLERANCE[weight.dtype] * float(expected.abs().amax())
        worst = float((weight.float() - expected.float()).abs().nan_to_num(torch.inf).amax())
        if worst > allowed:
            raise WrongResultError(f"{implementation.name}: {what}: layer {index} is off by {worst:.1e}")
