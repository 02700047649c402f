"""What becomes of an optimizer's memory of weights that were overwritten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from we_kernels.checks import check_choice

from ..arguments import check_optimizer
from ..sharding.local_part import local_part, spread_alike
from .wrapped_optimizers import parameters_of, wrapped_optimizers
from .writing import overwrite_

CHOICES = ("keep", "fill", "reset")

# Names of torch.optim's state; other optimizers mostly use the same.
_MOMENTS = {"exp_avg", "momentum_buffer", "grad_avg", "prev"}
_MAGNITUDES = {"exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum", "acc_delta", "exp_inf", "variance", "step_size"}
_AVERAGES = {"ax"}  # ASGD's average of the weight, which training does not read
_COUNTERS = {"step", "row_reset", "column_reset"}  # UnitAdamW's, of a vector as many as it has elements
# What does not start at zero: Adagrad's sum, Rprop's step size.
_INITIAL = {"sum": "initial_accumulator_value", "step_size": "lr"}


class OptimizerState(NamedTuple):
    """An optimizer, and what is to become of its state of elements that are overwritten.

    | choice | first moments | second moments | copies of the weight |
    | --- | --- | --- | --- |
    | "keep" | as they are | as they are | follow the weight |
    | "fill" | 0 | the mean of the tensor's other elements | follow the weight |
    | "reset" | 0 | as a fresh parameter has them, mostly 0 | follow the weight |

    The step counter is shared by all elements of a tensor and stays. With "reset" Adam therefore takes a second moment
    of 0 for one of long standing, and its next steps of those elements are several times too large (2.5 learning rates
    instead of 0.8 in a test); "fill" is for optimizers that divide by second moments.

    Copies of the weight are float32 masters, slow weights (Lookahead), other iterates (schedule-free): state of a name
    that torch.optim does not use whose distance from the weight is less than half the weight's norm. State of such a
    name that has no negative element counts as a second moment, else as a first.

    Only dense floating-point tensors of the parameter's shape, under the parameter in ``optimizer.state`` or that of an
    optimizer that it holds, are seen. Factored state (Adafactor's rows and columns), 8-bit codes, and copies kept
    elsewhere (in lists of the optimizer's own, or as its parameters instead of the model's) stay; an optimizer that
    computes weights from such a copy undoes what was written.
    """

    optimizer: Optimizer
    choice: str

    def check_trains(self, parameters: Sequence[Tensor]) -> None:
        """Refuse an optimizer of another model.

        Raises:
            ValueError: it has none of the parameters.
        """
        trained = set(map(id, parameters_of(self.optimizer)))
        if not any(id(parameter) in trained for parameter in parameters):
            raise ValueError(
                f"optimizer ({type(self.optimizer).__name__}) has none of the model's weights that take part; pass the "
                "one that trains them (not one of another model, or of copies of the weights)"
            )


def check_optimizer_state(optimizer: Optimizer | None, optimizer_state: str) -> OptimizerState | None:
    """The two arguments as one; None without an optimizer.

    Raises:
        TypeError: one of them is of the wrong type.
        ValueError: ``optimizer_state`` is none of the choices, or needs an optimizer.
    """
    check_choice(optimizer_state, "optimizer_state", CHOICES)
    if optimizer is None:
        if optimizer_state != "keep":
            raise ValueError(
                f'optimizer_state="{optimizer_state}" needs optimizer=, the torch.optim.Optimizer whose state to change'
            )
        return None
    return OptimizerState(check_optimizer(optimizer), optimizer_state)


class Entry(NamedTuple):
    """One tensor of state, of DTensors this rank's part."""

    key: str
    owner: Tensor
    """The optimizer's parameter, which may be a DTensor."""
    parameter: Tensor
    group: dict[str, Any]
    value: Tensor

    @property
    def is_known(self) -> bool:
        """Whether torch.optim uses the name, so that it is no copy of the weight."""
        return self.is_moment or self.is_average

    @property
    def is_moment(self) -> bool:
        """Whether it is a first or second moment by name, which `moments_of` finds."""
        return self.key in _MOMENTS | _MAGNITUDES

    @property
    def is_magnitude(self) -> bool:
        """Whether it is a second moment."""
        return self.key in _MAGNITUDES

    @property
    def is_average(self) -> bool:
        """Whether it is an average of the weight."""
        return self.key in _AVERAGES


class StateTensor(NamedTuple):
    """Moments of a parameter, and what those of overwritten elements become."""

    parameter: Tensor
    """The optimizer's, which may be a DTensor."""
    value: Tensor
    """Like it; of a DTensor this rank's part."""
    initial: float | None
    """None: the mean of the tensor's other elements."""


def moments_of(state: OptimizerState, parameters: Sequence[Tensor]) -> list[StateTensor]:
    """Moments of parameters by torch.optim's names, for a step that writes them itself; none with "keep"."""
    wanted = set(map(id, parameters)) if state.choice != "keep" else set()
    found = []
    for entry in entries_of(state.optimizer):
        if id(entry.owner) in wanted and entry.is_moment:
            initial = 0.0 if entry.key in _MOMENTS else float(_initial(entry)) if state.choice == "reset" else None
            found.append(StateTensor(entry.owner, entry.value, initial))
    return found


class StateUpdate:
    """Treats the optimizer state of replaced elements as `OptimizerState` says.

    Takes a copy of the parameters that have such state when made, so make it before the step and call `apply_` after.
    Neither waits for the device.

    Args:
        state: the optimizer, and what is to become of its state.
        parameters: those that the step may change.
        moments: False: all but what `moments_of` finds.

    Raises:
        ValueError: the optimizer has none of the parameters.
    """

    def __init__(self, state: OptimizerState, parameters: Sequence[Tensor], *, moments: bool = True) -> None:
        state.check_trains(parameters)
        self._choice = state.choice
        wanted = set(map(id, parameters))
        self._entries = [
            entry
            for entry in entries_of(state.optimizer)
            if id(entry.owner) in wanted
            and (state.choice != "keep" or not entry.is_known)
            and (moments or not entry.is_moment)
        ]
        self._before = {entry.parameter: entry.parameter.detach().clone() for entry in self._entries}

    @torch.no_grad()
    def apply_(self) -> None:
        """Change the state of every element that differs from the copy."""
        for entry in self._entries:
            before = self._before[entry.parameter]
            # A NaN differs from itself, but where there is one, nothing was replaced.
            changed = (entry.parameter != before) & (before == before)
            new = self._new(entry, before, changed).to(entry.value)
            overwrite_(entry.value, torch.where(changed, new, entry.value))

    def _new(self, entry: Entry, before: Tensor, changed: Tensor) -> Tensor:
        if entry.key in _AVERAGES:
            return entry.parameter
        if self._choice == "keep":
            other = entry.value
        elif self._choice == "fill":
            other = _filling(entry, changed)
        else:
            other = fresh(entry)
        if entry.is_known:
            return other
        return torch.where(_is_copy(entry.value, before), entry.parameter.to(entry.value), other.to(entry.value))


@torch.no_grad()
def entries_of(optimizer: Optimizer) -> list[Entry]:
    """State tensors with one value per element of their parameter, each once."""
    found: dict[int, Entry] = {}
    for one in (optimizer, *wrapped_optimizers(optimizer)):
        for group in one.param_groups:
            for parameter in group["params"]:
                state = one.state.get(parameter)
                for key, value in state.items() if isinstance(state, dict) else ():
                    if _is_per_element(value, parameter) and key not in _COUNTERS:
                        found[id(value)] = Entry(key, parameter, local_part(parameter), group, local_part(value))
    return list(found.values())


def _is_per_element(value: object, parameter: Tensor) -> bool:
    return (
        isinstance(value, Tensor)
        # Other subclasses may hold codes.
        and (type(value) in (Tensor, nn.Parameter) or spread_alike(value, parameter))
        and value.is_floating_point()
        and value.layout == torch.strided
        and value.shape == parameter.shape
    )


def _is_copy(value: Tensor, weight: Tensor) -> Tensor:
    """bool [], on the device: nearer to the weight than half its norm."""
    precision = torch.promote_types(value.dtype, torch.float32)
    weight = weight.to(precision)
    return (value.to(precision) - weight).square().sum() * 4 < weight.square().sum()


def _filling(entry: Entry, changed: Tensor) -> Tensor:
    """[] on the device: the mean of a magnitude's other elements, of all where none is left; 0 for the rest."""
    value = entry.value
    if entry.key in _MOMENTS:
        return value.new_zeros(())
    precision = torch.promote_types(value.dtype, torch.float32)
    others = ~changed & value.isfinite()
    count = others.sum()
    mean = torch.where(
        count > 0, torch.where(others, value, 0).sum(dtype=precision) / count, value.mean(dtype=precision)
    )
    return mean if entry.key in _MAGNITUDES else torch.where((value >= 0).all(), mean, 0)


def _initial(entry: Entry) -> float | Tensor:
    """What a fresh parameter has; a tensor where the optimizer keeps its learning rate on the device."""
    initial: float | Tensor = entry.group.get(_INITIAL.get(entry.key, ""), 0.0)
    return initial


def fresh(entry: Entry) -> Tensor:
    """[] on the device: what a fresh parameter has."""
    initial = _initial(entry)
    if isinstance(initial, Tensor):
        return initial.to(entry.value)
    # Not as_tensor: copying a number to a GPU waits for it.
    return entry.value.new_full((), initial)
