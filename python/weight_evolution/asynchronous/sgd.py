"""`AsynchronousSGD`: torch.optim.SGD whose step moves only a random subset of each convolution's filters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.sgd import sgd

import we_kernels as wk

from ..model.checked_optimizer import CheckedOptimizer, loss_of
from ..model.module_filters import ModuleChoice, ModuleFilter
from ..model.targets import Target, Targets
from ..sharding.local_part import is_distributed, local_part
from .calls import only_makes_state
from .convolutions import Convolutions
from .subsets import PUBLISHED_RATE, OfSubsets, SubsetRule, Subsets
from .targets import find_convolutions, listed_convolutions

_STATE_KEY = "asynchronous"


class AsynchronousSGD(OfSubsets, CheckedOptimizer, SGD):
    """SGD of which, in every step, a random subset of each convolution's filters moves; the momentum advances for all.

    A drop-in for torch.optim.SGD: the same arguments, the same state ("momentum_buffer"), at rate 1 the same bits as
    with ``foreach=True``, and at any rate the same as `AsynchronousUpdate` around SGD, without its two copies: one pass
    over weights, gradients and momentum. `AsynchronousUpdate` says which subsets are drawn and which convolutions take
    part.

    Gradients or momentum of another dtype than their parameter's (after ``model.double()``, say) are taken as SGD takes
    them, at SGD's speed.

    ``state_dict()`` is SGD's, with one more entry for the subsets, which the first parameter group has, too:
    torch.distributed.checkpoint keeps only state and groups. SGD can load it, and this can load SGD's (without such an
    entry the subsets go on as they were).

    Source: Zhang et al., "Weight asynchronous update" (10.1007/s41095-020-0185-5).

    Args:
        params, lr, momentum, dampening, weight_decay, nesterov, maximize: as in torch.optim.SGD.
        foreach: any; all parameters of a group are updated by one kernel.
        differentiable, fused: not supported.
        model: the network whose convolutions among ``params`` are updated asynchronously.
        conv_weights: instead of ``model``: these parameters, [N, C, *kernel] each.
        rate, seed, select, replacement, include, exclude: as in `AsynchronousUpdate`.
        rescale: divide the convolutions' learning rate by the expected share that moves.

    Raises:
        TypeError, ValueError: name the argument or parameter and say what to do.
    """

    _instead = "AsynchronousUpdate with torch.optim.SGD"
    _distributed = False
    """Whether there are DTensors among the parameters."""

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        model: nn.Module | None = None,
        conv_weights: Iterable[Tensor] | None = None,
        rate: float = PUBLISHED_RATE,
        seed: int = 0,
        select: str = "filters",
        replacement: bool = False,
        rescale: bool = False,
        include: Sequence[ModuleFilter] | None = None,
        exclude: Sequence[ModuleFilter] = (),
    ) -> None:
        rule = SubsetRule.of(locals())
        if (model is None) == (conv_weights is None):
            raise ValueError("pass model=, the network whose convolutions to update, or conv_weights=, their weights")
        if conv_weights is not None and (isinstance(conv_weights, Tensor) or not isinstance(conv_weights, Iterable)):
            raise TypeError(f"conv_weights must be a list of parameters, got {type(conv_weights).__name__}")
        if conv_weights is not None and (include is not None or exclude):
            raise ValueError("include and exclude go with model=; leave weights out of conv_weights instead")
        super().__init__(
            params,
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
            maximize=maximize,
            foreach=foreach,
            differentiable=differentiable,
            fused=fused,
        )
        find: Callable[[Iterable[Tensor]], Targets]
        if model is not None:
            find = partial(find_convolutions, model, select, ModuleChoice(include, exclude))
        else:
            find = partial(listed_convolutions, () if conv_weights is None else tuple(conv_weights), select)
        self._subsets = Subsets(Convolutions(find, self, model), rule)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what the closure returns.

        Raises:
            RuntimeError: a gradient is sparse; nothing is changed.
        """
        loss = loss_of(closure)
        idle = closure is None and only_makes_state(self)
        bank = self._subsets.convolutions.bank()
        parts = bank.split(self._subsets.draw(bank))
        shares = self._subsets.shares(bank) if self._subsets.rule.rescale else [1.0] * len(bank)
        masked = {
            id(target.parameter): (target, parts[i], shares[i])
            for target, i in zip(self._subsets.convolutions.targets.items, bank.position, strict=True)
        }
        # All gradients are looked at before the first parameter moves.
        distributed = self._distributed
        calls = [
            (group, part) for group in self.param_groups for part in _parts(group, masked, self.state, distributed)
        ]
        for group, (share, rows) in calls:
            equal = [row for row in rows if row.has_one_dtype]
            if equal:
                self._update(group, share, equal)
            if len(equal) < len(rows):
                self._update_as_sgd(group, share, [row for row in rows if not row.has_one_dtype])
        if not idle:
            self._subsets.advance()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """SGD's, and under "asynchronous", there and in the first group, the step counter, seed and rate."""
        state, subsets = super().state_dict(), self._subsets.state_dict()
        first, *others = state["param_groups"]
        return {**state, "param_groups": [{**first, _STATE_KEY: subsets}, *others], _STATE_KEY: subsets}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ValueError: the state does not fit; nothing is changed.
        """
        places = [state_dict, *state_dict.get("param_groups", ())]
        subsets = next((place[_STATE_KEY] for place in places if _STATE_KEY in place), None)
        if subsets is not None:
            self._subsets.check_state(subsets)
        super().load_state_dict({key: value for key, value in state_dict.items() if key != _STATE_KEY})
        for group in self.param_groups:
            group.pop(_STATE_KEY, None)
        if subsets is not None:
            self._subsets.load_state_dict(subsets)

    def __repr__(self) -> str:
        rule = self._subsets.rule
        return f"{super().__repr__()[:-1]}Asynchronous\n    rate: {rule.rate}\n    seed: {rule.seed}\n)"

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_subsets": self._subsets, "_distributed": self._distributed}

    def _check_group(self, group: dict[str, Any]) -> None:
        super()._check_group(group)
        self._distributed = self._distributed or any(map(is_distributed, group["params"]))
        if group["fused"]:
            raise ValueError("fused=True is not supported: the step is one kernel already; leave fused out")

    def _update(self, group: dict[str, Any], share: float, rows: list[_Row]) -> None:
        momentum = group["momentum"]
        held = [row for row in rows if row.param.numel()]  # of a weight that is sharded a rank may have nothing
        masks = [row.mask for row in held if row.mask is not None]
        device = rows[0].param.device
        buffers = [row.buffer for row in held if row.buffer is not None]
        wk.asynchronous_sgd_(
            [row.param for row in held],
            [row.grad for row in held],
            buffers if momentum != 0 else None,
            [row.dim for row in held],
            torch.cat(masks) if masks else torch.empty(0, dtype=torch.bool, device=device),
            lr=_stretched(group, share),
            momentum=momentum,
            dampening=group["dampening"],
            weight_decay=float(group["weight_decay"]),
            nesterov=group["nesterov"],
            maximize=group["maximize"],
            first_step=[row.first for row in held],
        )
        for row in rows:
            if row.first:
                self.state[row.owner]["momentum_buffer"] = row.whole_buffer

    def _update_as_sgd(self, group: dict[str, Any], share: float, rows: list[_Row]) -> None:
        """What the kernel does not take: gradients or momentum of another dtype than the parameter's."""
        before = [row.owner.clone() for row in rows]
        buffers = [None if row.first else row.whole_buffer for row in rows]
        sgd(
            [row.owner for row in rows],
            [row.owner.grad.clone() for row in rows if row.owner.grad is not None],  # Nesterov's changes them
            buffers,
            foreach=True,
            fused=False,
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            lr=_stretched(group, share),
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
        )
        for row, old, buffer in zip(rows, before, buffers, strict=True):
            if group["momentum"] != 0:
                self.state[row.owner]["momentum_buffer"] = buffer
            if row.mask is not None and row.target is not None and row.dim is not None:
                shape = [1] * row.param.dim()
                shape[row.dim] = -1
                row.param.copy_(torch.where(row.mask.view(shape), row.param, row.target.view_of(local_part(old))[0]))


class _Row(NamedTuple):
    """One parameter with what belongs to it, as views whose filters lie along `dim`."""

    owner: Tensor
    whole_buffer: Tensor | None
    param: Tensor
    grad: Tensor
    buffer: Tensor | None
    first: bool
    target: Target | None = None
    dim: int | None = None
    mask: Tensor | None = None

    @property
    def has_one_dtype(self) -> bool:
        """Whether gradient and momentum have the parameter's."""
        dtype = self.param.dtype
        return self.grad.dtype == dtype and (self.buffer is None or self.buffer.dtype == dtype)


def _parts(
    group: dict[str, Any],
    masked: dict[int, tuple[Target, Tensor, float]],
    states: Mapping[Tensor, Any],
    distributed: bool,
) -> list[tuple[float, list[_Row]]]:
    """What has a gradient, by the share that divides its learning rate and by device; one call of the kernel each."""
    found: dict[tuple[float, torch.device], list[_Row]] = {}
    for param in group["params"]:
        grad = param.grad
        if grad is None:
            continue
        if grad.is_sparse:
            raise RuntimeError(
                "AsynchronousSGD does not support sparse gradients; give those parameters an optimizer of their own"
            )
        buffer, first = None, False
        if group["momentum"] != 0:
            buffer = states[param].get("momentum_buffer") if param in states else None
            if first := buffer is None:
                buffer = torch.empty_like(param)
        own, own_grad, own_buffer = param, grad, buffer
        if distributed:
            own, own_grad = local_part(param), local_part(grad)
            own_buffer = None if buffer is None else local_part(buffer)
        if id(param) in masked:
            target, mask, share = masked[id(param)]
            view, dim = target.view_of(own)
            buffer_view = None if own_buffer is None else target.view_of(own_buffer)[0]
            if own_buffer is not None and buffer_view is not None and buffer_view.data_ptr() != own_buffer.data_ptr():
                # Loaded from a run with another memory format.
                buffer = states[param]["momentum_buffer"] = own_buffer.contiguous()
                buffer_view = target.view_of(buffer)[0]
            row = _Row(param, buffer, view, target.view_of(own_grad)[0], buffer_view, first, target, dim, mask)
        else:
            row, share = _Row(param, buffer, own, own_grad, own_buffer, first), 1.0
        found.setdefault((share, param.device), []).append(row)
    return [(share, rows) for (share, _), rows in found.items()]


def _stretched(group: dict[str, Any], share: float) -> Any:
    """The learning rate, a number or a tensor, by which filters move on average as far as under SGD."""
    lr = group["lr"]
    return lr if share == 1.0 else lr / share
