"""`UnitAdamW`: torch.optim.AdamW and Adam in which the rows and columns of a weight have their own ages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Adam

import we_kernels as wk
from we_kernels.checks import check_integer, check_vector

from ..model.checked_optimizer import CheckedOptimizer, loss_of
from ..sharding.local_part import is_distributed, local_part, spread_alike
from .reset_vectors import by_row, held_rows, row_vector, spread_rows

_RESETS = ("row_reset", "column_reset")


class UnitResets(NamedTuple):
    """When the rows and columns of a parameter were reset; changed in place by who resets them.

    A row or column counts from the step whose number stands here: it is of age 1 in the step after. 0 is never.
    """

    rows: Tensor
    """float32 [D0] on the parameter's device; of a DTensor those of the rows that this rank holds."""
    columns: Tensor
    """float32 [groups * D1], there, too; column ``(r // (D0 / groups)) * D1 + c`` is that of element (r, c)."""
    step: Tensor
    """The parameter's steps so far, one element; on the CPU unless the optimizer is capturable."""


class UnitAdamW(CheckedOptimizer, Adam):
    """AdamW whose bias correction counts, element by element, from the last reset of the element's row or column.

    A drop-in for torch.optim.AdamW: the same arguments and state, and the same bits as with ``foreach=True`` on a CPU
    while nothing was reset; with ``decoupled_weight_decay=False`` and ``weight_decay=0`` for torch.optim.Adam. One
    kernel updates all parameters of a group and device.

    Under Adam a unit that is made anew in the middle of training takes its first steps with a second moment of 0 and
    the corrections of a late step: several times too large. `reset_units_` gives its weights a fresh state and age 0,
    so that they move from then on as under a fresh optimizer.

    ``state_dict()`` is AdamW's; parameters of which something was reset have two more vectors, "row_reset" and
    "column_reset". It loads those of torch.optim.Adam and AdamW, with their options, and those load its own.

    Parameters may be DTensors that are spread by their rows (FSDP2, HSDP, ``Shard(0)``). Each rank then moves its own
    rows, without communication, and the vectors are there from the first step on: "row_reset" a DTensor that is spread
    like the parameter, "column_reset" the same on all ranks.

    Sources: Kingma and Ba, "Adam" (arXiv 1412.6980); Loshchilov and Hutter (arXiv 1711.05101) for the decay.

    Args:
        params, lr, betas, eps, weight_decay, amsgrad, maximize: as in torch.optim.AdamW; betas are numbers.
        decoupled_weight_decay: False is Adam's weight decay, which is added to the gradient.
        capturable: keep the step counters on the parameters' devices, so that a CUDA graph can hold the step; works on
            a CPU, too. The corrections are then computed in float64 on the device.

    Raises:
        TypeError, ValueError: name the argument or parameter and say what to do.
    """

    _instead = "torch.optim.AdamW"

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        decoupled_weight_decay: bool = True,
        capturable: bool = False,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            capturable=capturable,
            decoupled_weight_decay=decoupled_weight_decay,
        )
        self._kept: dict[Tensor, int] = {}
        """The groups of parameters that `keep_resets` was called for."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what the closure returns.

        Raises:
            RuntimeError: a gradient is sparse, or a graph is being captured without ``capturable``.
            ValueError: a gradient or a moment is not of its parameter's dtype, on its device and spread as it is.
                Nothing is changed.
        """
        loss = loss_of(closure)
        groups = [(group, [p for p in group["params"] if p.grad is not None]) for group in self.param_groups]
        spread = any(is_distributed(param) for _, params in groups for param in params)
        # All are looked at before the first parameter moves.
        for group, params in groups:
            self._check_ready(group, params, spread)
        for group, params in groups:
            by_place: dict[tuple[torch.device, bool], list[Tensor]] = {}
            for param in params:
                on_host = self._start(param, group, spread)["step"].device.type == "cpu" and not group["capturable"]
                by_place.setdefault((param.device, on_host), []).append(param)
            for (_, on_host), part in by_place.items():
                self._update(group, part, on_host, spread)
        return loss

    @torch.no_grad()
    def reset_units_(
        self, parameter: Tensor, rows: Tensor | None = None, columns: Tensor | None = None, groups: int = 1
    ) -> None:
        """Give rows and columns of a parameter a fresh state: moments 0, and age 1 in the next step.

        The parameter itself is not touched, and the device is not waited for. A parameter that has not moved yet has a
        fresh state already.

        Args:
            parameter: one of the optimizer's, seen as [D0, D1, ...]; one of a single dimension as [D0, 1].
            rows: bool [D0] on the parameter's device: the outputs that are new. Of a DTensor those of all ranks, the
                same on each.
            columns: bool [groups * D1], likewise: the inputs. Element (r, c) belongs to column
                ``(r // (D0 / groups)) * D1 + c``: of a convolution of so many groups, all of its input channels.
            groups: divides D0; always the same for a parameter.

        Raises:
            TypeError, ValueError: name the argument; nothing is changed.
        """
        d0, d1 = self._geometry(parameter, groups)
        for mask, name, size in ((rows, "rows", d0), (columns, "columns", groups * d1)):
            if mask is not None:
                check_vector(mask, name, size, torch.bool, parameter.device)
        state = self.state.get(parameter)
        if not state:
            return
        held = held_rows(parameter)
        fresh = torch.zeros((held.number, d1), dtype=torch.bool, device=parameter.device)
        if rows is not None:
            self._row_reset(parameter).masked_fill_(rows[held.range], _scalar(state["step"]))
            fresh |= rows[held.range].view(-1, 1)
        if columns is not None:
            self._column_reset(parameter, groups).masked_fill_(columns, _scalar(state["step"]))
            fresh |= by_row(columns, groups, parameter)
        shape = (held.number, d1, *[1] * (parameter.dim() - 2))[: parameter.dim()]
        for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            if key in state:
                local_part(state[key]).masked_fill_(fresh.view(shape), 0)

    @torch.no_grad()
    def unit_resets(self, parameter: Tensor, groups: int = 1) -> UnitResets | None:
        """The vectors behind `reset_units_`, made if need be, for who resets units in a kernel of its own.

        Who writes there sets the moments of these elements to 0, too (`reset_units_` says which belong to what).
        None for a parameter that has not moved yet: it has nothing to reset.

        Raises:
            TypeError, ValueError: as in `reset_units_`.
        """
        self._geometry(parameter, groups)
        state = self.state.get(parameter)
        if not state:
            return None
        return UnitResets(self._row_reset(parameter), self._column_reset(parameter, groups), state["step"])

    @torch.no_grad()
    def keep_resets(self, parameter: Tensor, groups: int = 1) -> None:
        """Have the vectors of a parameter's resets from its first step on, as DTensors have them anyway.

        torch.distributed.checkpoint loads only what a fresh optimizer has, too; so call it where a checkpoint is
        written and where it is loaded, before. Of a convolution of several groups that is a DTensor, call it before the
        first step: its "column_reset" has the entries of one group else.

        Raises:
            TypeError, ValueError: as in `reset_units_`.
        """
        self._geometry(parameter, groups)
        self._kept[parameter] = groups
        self.unit_resets(parameter, groups)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where `state_dict` of this, of torch.optim.AdamW or Adam was taken."""
        final: dict[str, Any] = {}
        # After the hooks of others: what is loaded in the end.
        hook = self.register_load_state_dict_pre_hook(lambda _, state: final.update(state))
        try:
            super().load_state_dict(dict(state_dict))
        finally:
            hook.remove()
        # PyTorch has cast all but "step" to the parameter's dtype: bfloat16 counts to 256.
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        numbers = chain.from_iterable(group["params"] for group in final["param_groups"])
        for param, number in zip(params, numbers, strict=True):
            for key in _RESETS:
                value = final["state"].get(number, {}).get(key)
                if value is not None:
                    spread = spread_rows if key == "row_reset" else _like
                    self.state[param][key] = spread(value, param)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return {**state, "_kept": self._kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        defaults = state.get("defaults") or self.defaults
        for group in state["param_groups"]:
            # Of before PyTorch 2.6, when a group did not say which of the two it was.
            group.setdefault("decoupled_weight_decay", defaults["decoupled_weight_decay"])
            group.update(foreach=None, fused=None, differentiable=False)
        self.__dict__.setdefault("_kept", {})
        super().__setstate__(state)  # type: ignore[no-untyped-call]

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        for i, param in enumerate(group["params"]):
            held_rows(param, f"params[{i}]")
        if any(isinstance(beta, Tensor) for beta in group["betas"]):
            raise TypeError("betas must be numbers, not tensors")

    def _check_ready(self, group: dict[str, Any], params: list[Tensor], spread: bool) -> None:
        """What would stop a step half way.

        ``spread``, here and below: whether any parameter of the optimizer is a DTensor; else none is looked at again.
        """
        capturable = group["capturable"] or torch.compiler.is_compiling()
        if not capturable and any(map(wk.is_capturing, {param.device for param in params})):
            raise RuntimeError("a graph that holds the step of UnitAdamW needs capturable=True")
        for param in params:
            grad, state = param.grad, self.state.get(param)
            assert grad is not None
            if grad.is_sparse:
                raise RuntimeError(
                    "UnitAdamW does not support sparse gradients; give those parameters an optimizer of their own "
                    "(torch.optim.SparseAdam)"
                )
            own = param.dtype, param.device
            if spread and is_distributed(param):
                _check_spread(param, grad, state or {})
            if (grad.dtype, grad.device) != own:
                raise ValueError(
                    f"the gradient of a parameter of shape {tuple(param.shape)} is {grad.dtype} on {grad.device}, the "
                    f"parameter {param.dtype} on {param.device}: they must be alike"
                )
            if state and (state["exp_avg"].dtype, state["exp_avg"].device) != own:
                raise ValueError(
                    f"the state of a parameter of shape {tuple(param.shape)} is {state['exp_avg'].dtype} on "
                    f"{state['exp_avg'].device}, the parameter {param.dtype} on {param.device}; after moving or "
                    "casting the model call optimizer.load_state_dict(optimizer.state_dict())"
                )

    def _start(self, param: Tensor, group: dict[str, Any], spread: bool) -> dict[str, Any]:
        """The state of a parameter, as AdamW makes it at the first step."""
        state: dict[str, Any] = self.state[param]
        if not state:
            device = param.device if group["capturable"] else "cpu"
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            state["exp_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format)
            state["exp_avg_sq"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        if group["amsgrad"] and "max_exp_avg_sq" not in state:
            state["max_exp_avg_sq"] = torch.zeros_like(param, memory_format=torch.preserve_format)
        if group["capturable"] and (state["step"].device, state["step"].dtype) != (param.device, torch.float32):
            state["step"] = state["step"].to(param.device, torch.float32)
        if (spread or self._kept) and "row_reset" not in state and (is_distributed(param) or param in self._kept):
            self._row_reset(param)
            self._column_reset(param, self._kept.get(param, 1))
        return state

    def _update(self, group: dict[str, Any], params: list[Tensor], on_host: bool, spread: bool) -> None:
        states = [self.state[param] for param in params]
        counters = [state["step"] for state in states]
        steps = [counter.item() + 1 for counter in counters] if on_host else counters
        if not on_host:
            torch._foreach_add_(counters, 1)
        rows: list[Any] = [state.get("row_reset") for state in states]
        columns: list[Any] = [state.get("column_reset") for state in states]
        groups: list[Any] = list(map(_groups_of, params, columns))
        if spread:
            own_resets = map(_own_resets, params, rows, columns, groups)
            rows, columns, groups = map(list, zip(*own_resets, strict=True))

        def own(tensors: list[Tensor]) -> list[Tensor]:
            return list(map(local_part, tensors)) if spread else tensors

        wk.unit_adamw_(
            own(params),
            own([param.grad for param in params if param.grad is not None]),
            own([state["exp_avg"] for state in states]),
            own([state["exp_avg_sq"] for state in states]),
            own([state["max_exp_avg_sq"] for state in states]) if group["amsgrad"] else None,
            rows,
            columns,
            groups,
            steps,
            lr=group["lr"],
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            decoupled_weight_decay=group["decoupled_weight_decay"],
            amsgrad=group["amsgrad"],
            maximize=group["maximize"],
        )
        if on_host:
            torch._foreach_add_(counters, torch.tensor(1.0, device="cpu"), alpha=1.0)

    def _geometry(self, parameter: Tensor, groups: int) -> tuple[int, int]:
        """D0 and D1 of one of the optimizer's parameters."""
        if not isinstance(parameter, Tensor):
            raise TypeError(f"parameter must be a tensor, got {type(parameter).__name__}")
        if not any(parameter is each for group in self.param_groups for each in group["params"]):
            raise ValueError(f"parameter, of shape {tuple(parameter.shape)}, is not among the optimizer's")
        d0, d1 = (*parameter.shape, 1, 1)[:2]
        if check_integer(groups, "groups") < 1 or d0 % groups != 0:
            raise ValueError(f"groups must be a positive divisor of {d0}, the parameter's rows, got {groups}")
        state = self.state.get(parameter, {})
        known = state.get("column_reset")
        if known is not None and known.numel() != groups * d1:
            if not is_distributed(parameter) or bool(known.any()):
                raise ValueError(
                    f"groups must be {_groups_of(parameter, known)}, as in earlier resets of the parameter, got "
                    f"{groups}"
                )
            del state["column_reset"]  # made at the first step, and nothing was reset
        return d0, d1

    def _row_reset(self, parameter: Tensor) -> Tensor:
        """This rank's part of the vector, made if need be."""
        state = self.state[parameter]
        if "row_reset" not in state:
            state["row_reset"] = row_vector(parameter)
        return local_part(state["row_reset"])

    def _column_reset(self, parameter: Tensor, groups: int) -> Tensor:
        state = self.state[parameter]
        if "column_reset" not in state:
            size = groups * (*parameter.shape, 1, 1)[1]
            state["column_reset"] = torch.zeros(size, dtype=torch.float32, device=parameter.device)
        found: Tensor = state["column_reset"]
        return found


def _scalar(step: Tensor) -> Tensor:
    return step.reshape(())


def _groups_of(param: Tensor, column_reset: Tensor | None) -> int:
    d1 = param.shape[1] if param.dim() > 1 else 1
    return column_reset.numel() // d1 if column_reset is not None and d1 else 1


def _own_resets(
    param: Tensor, rows: Tensor | None, columns: Tensor | None, groups: int
) -> tuple[Tensor | None, Tensor | None, int]:
    """The same of the rows that this rank holds: when they and their columns were reset, and these columns' groups."""
    if rows is None or columns is None or not is_distributed(param):
        return rows, columns, groups
    if groups > 1:  # the rows here may begin within a group, so each gets columns of its own
        of_rows = by_row(columns, groups, param)
        columns, groups = (of_rows, len(of_rows)) if len(of_rows) else (columns[: param.shape[1]], 1)
    return local_part(rows), columns.flatten(), groups


def _check_spread(param: Tensor, grad: Tensor, state: Mapping[str, Any]) -> None:
    """Whether the gradient and state of a DTensor have the rows that this rank has of it."""
    if not spread_alike(grad, param):
        raise ValueError(
            f"the gradient of a parameter of shape {tuple(param.shape)} is not spread over the ranks as the parameter "
            "is; redistribute it"
        )
    if state and not spread_alike(state["exp_avg"], param):
        raise ValueError(
            f"the state of a parameter of shape {tuple(param.shape)} is not spread over the ranks as the parameter is: "
            "make the optimizer after fully_shard, and load its state with set_state_dict of "
            "torch.distributed.checkpoint.state_dict"
        )


def _like(columns: Tensor, param: Tensor) -> Tensor:
    return columns.to(device=param.device, dtype=torch.float32)
