"""`AsynchronousUpdate`: any optimizer, of whose step only a random part is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import we_kernels as wk

from ..parameters import ModuleFilter
from .sgd import AsynchronousSGD
from .subsets import Subsets
from .targets import check_rate, check_select, find_convolutions

_attached: WeakSet[Optimizer] = WeakSet()


class AsynchronousUpdate:
    """Keeps, of each step of an optimizer, only what it did to a random subset of each convolution's filters.

    It hooks into ``optimizer.step()`` and needs no other call. The optimizer computes its whole step, and its state
    advances for all elements. Selected filters then keep what the optimizer made of them, bit for bit; the others get
    the bits back that they had. Everything that is not a convolution's weight moves as usual. The subset is drawn anew
    for every layer and step, from ``seed`` and the number of the step alone, so all ranks of a data-parallel job draw
    the same without communication.

    Convolutions whose weight the optimizer does not have when this is made take no part (see `skipped`), nor those that
    ``optimizer.add_param_group`` adds later: call `detach` and make a new one. Frozen convolutions take part when they
    are thawed.

    A step that a GradScaler skips draws nothing. If the optimizer's step raises, the weights stay as it left them, and
    the next step draws the same subset again. A closure sees the weights as the plain optimizer would have them within
    its step (LBFGS evaluates it there); the others are put back at the end.

    Cost: a copy of the weights that do not move, before and after the step, in one buffer of the convolutions' size
    that is kept (with ``rescale`` a second one). `AsynchronousSGD` needs neither.

    Source: Zhang et al., "Weight asynchronous update: Improving the diversity of filters in a deep convolutional
    network", Computational Visual Media 6(4), 2020 (10.1007/s41095-020-0185-5). The paper selects filters; the authors'
    program is ``select="input_channels", replacement=True``.

    Args:
        optimizer: any torch optimizer.
        model: the network, or a part of it; all its convolutions on one device.
        rate: in (0, 1]: the share of each layer's filters that moves, at least one filter.
        seed: of the random subsets.
        select: "filters", or "input_channels" (shared by all filters of the layer; of each group of a grouped
            convolution, which for a depthwise one is all).
        replacement: draw with replacement, so that fewer distinct ones move (about 39% at rate 0.5).
        rescale: divide what the selected filters moved by by the expected share that moves, so that filters move on
            average as far as under the plain optimizer. Moved filters are then no longer bit-equal to the plain step.
        include: only modules of these names (with all inside them), name patterns (``*``) or types.
        exclude: no modules of these names, patterns or types.

    Raises:
        TypeError, ValueError: name the argument or parameter and say what to do; nothing is attached.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        rate: float = 0.5,
        seed: int = 0,
        select: str = "filters",
        replacement: bool = False,
        rescale: bool = False,
        *,
        include: Sequence[ModuleFilter] | None = None,
        exclude: Sequence[ModuleFilter] = (),
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if isinstance(optimizer, AsynchronousSGD):
            raise ValueError("optimizer is an AsynchronousSGD, which updates asynchronously by itself; use it alone")
        if optimizer in _attached:
            raise ValueError("optimizer has an AsynchronousUpdate already; call its detach() first")
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        targets = find_convolutions(model, check_select(select), parameters, include, exclude)
        self._subsets = Subsets(targets, rate=rate, seed=seed, select=select, replacement=replacement, rescale=rescale)
        self._bank: wk.FilterBank | None = None
        self._buffer: Tensor | None = None
        self._before_step: list[Tensor] = []
        self._pending: tuple[wk.FilterBank, Tensor] | None = None
        self._hooks = [
            optimizer.register_step_pre_hook(self._save),
            optimizer.register_step_post_hook(self._restore),
        ]
        self._optimizer = optimizer
        _attached.add(optimizer)

    @property
    def rate(self) -> float:
        """The share of filters that moves; may be changed between steps."""
        return self._subsets.rate

    @rate.setter
    def rate(self, rate: float) -> None:
        self._subsets.rate = check_rate(rate)

    @property
    def step_count(self) -> int:
        """Steps so far; the next draws the subset of this number. Waits for the device."""
        return int(self._subsets.step)

    @property
    def skipped(self) -> dict[str, str]:
        """Weights of convolutions that do not take part, and why."""
        return dict(self._subsets.targets.skipped)

    def selection(self, step: int | None = None) -> dict[str, Tensor]:
        """Parameter name -> bool [N] on the CPU: the filters (or input channels) that move in a step (the next)."""
        return self._subsets.selection(step)

    def detach(self) -> None:
        """Leave the optimizer as it was; its next step moves everything. Does nothing the second time."""
        for hook in self._hooks:
            hook.remove()
        if self._hooks:
            _attached.discard(self._optimizer)
        self._hooks = []
        self._bank, self._buffer, self._before_step, self._pending = None, None, [], None

    def state_dict(self) -> dict[str, Any]:
        """All that the next subsets depend on; plain numbers and strings. Waits for the device."""
        return self._subsets.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, with its seed and rate.

        Raises:
            ValueError: the state is of another format, model or way to select; names the first difference. Nothing is
                changed.
        """
        self._subsets.load_state_dict(state)

    @torch.no_grad()
    def _save(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        bank = self._subsets.targets.bank()
        selected = self._subsets.draw(bank)
        if self._buffer is None or bank is not self._bank:  # also after a change of dtype or device
            self._bank, self._buffer = bank, wk.unselected_buffer(bank)
            self._before_step = [torch.empty_like(weight) for weight in bank.weights] if self._subsets.rescale else []
        wk.save_unselected_(bank, selected, self._buffer)
        if self._subsets.rescale:
            torch._foreach_copy_(self._before_step, list(bank.weights))
        self._pending = bank, selected

    @torch.no_grad()
    def _restore(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._pending is None or self._buffer is None:  # made within a step
            return
        (bank, selected), self._pending = self._pending, None
        if self._subsets.rescale:
            self._stretch(bank)
        wk.restore_unselected_(bank, selected, self._buffer)
        # What a GradScaler tells a fused optimizer, which then leaves out its step on the device.
        self._subsets.advance(skipped=getattr(optimizer, "found_inf", None))

    def _stretch(self, bank: wk.FilterBank) -> None:
        """W + (what the optimizer added) / share, for all filters of the weights that have a gradient."""
        targets = self._subsets.targets.items
        moved = sorted({i for i, t in zip(bank.position, targets, strict=True) if t.parameter.grad is not None})
        if not moved:
            return
        weights, before = [bank.weights[i] for i in moved], [self._before_step[i] for i in moved]
        shares = self._subsets.shares(bank)
        change = torch._foreach_sub(weights, before)
        torch._foreach_div_(change, [shares[i] for i in moved])
        torch._foreach_copy_(weights, torch._foreach_add(before, change))
