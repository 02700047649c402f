"""`AsynchronousUpdate`: any optimizer, of whose step only a random part is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import we_kernels as wk

from ..arguments import check_optimizer
from ..model.module_filters import ModuleChoice, ModuleFilter
from ..model.wrapped_optimizers import without_accelerate, wrapped_optimizers
from .calls import check_hooks, only_makes_state, within_another_step
from .convolutions import Convolutions
from .sgd import AsynchronousSGD
from .subsets import PUBLISHED_RATE, OfSubsets, SubsetRule, Subsets
from .targets import find_convolutions

_attached: WeakSet[Optimizer] = WeakSet()


_Layout = tuple[torch.Size, tuple[int, ...], torch.dtype, torch.device]


class _Begun(NamedTuple):
    """A step that has begun: its subset, and how the weights lay in memory when they were saved."""

    selected: Tensor
    buffer: Tensor
    layout: list[_Layout]
    counts: bool


class AsynchronousUpdate(OfSubsets):
    """Keeps, of each step of an optimizer, only what it did to a random subset of each convolution's filters.

    It hooks into ``optimizer.step()`` and needs no other call. The optimizer computes its whole step, and its state
    advances for all elements. Selected filters then keep what the optimizer made of them, bit for bit; the others get
    the bits back that they had. Everything that is not a convolution's weight moves as usual. The subset is drawn anew
    for every layer and step, from ``seed`` and the number of the step alone, so all ranks of a data-parallel job draw
    the same without communication.

    Convolutions whose weight the optimizer does not have take no part (see `skipped`) until ``add_param_group`` adds
    it. Frozen convolutions take part when they are thawed. Model and optimizer are looked at in each step: what can be
    followed is followed, a weight that cannot be masked any more makes the step raise before anything is changed.

    A step that a GradScaler skips draws nothing. If the optimizer's step raises, the weights stay as it left them, and
    the next step draws the same subset again. A closure sees the weights as the plain optimizer would have them within
    its step (LBFGS evaluates it there); the others are put back at the end. A step that calls ``super().step()`` is one
    step.

    Copies (`copy.deepcopy`, pickle) of optimizer, model and this together go on alike; a copy of the optimizer without
    this is the plain optimizer.

    Cost: a copy of the weights that do not move, before and after the step, in one buffer of the convolutions' size
    that is kept (with ``rescale`` a second one). `AsynchronousSGD` needs neither.

    Source: Zhang et al., "Weight asynchronous update: Improving the diversity of filters in a deep convolutional
    network", Computational Visual Media 6(4), 2020 (10.1007/s41095-020-0185-5). The paper selects filters; the authors'
    program is ``select="input_channels", replacement=True``.

    Args:
        optimizer: any torch optimizer whose ``step()`` runs torch's step hooks. Of an optimizer around another one, the
            outer one; of accelerate's, which only hands steps on, the one in it.
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

    ``optimizer.step()`` then raises before a weight moves: RuntimeError, if a weight that took part is not in the model
    or the optimizer any more, or if an optimizer that the given one holds steps outside of its step; TypeError or
    ValueError, if a weight was parametrized, pruned, sharded or resized.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        model: nn.Module,
        rate: float = PUBLISHED_RATE,
        seed: int = 0,
        select: str = "filters",
        replacement: bool = False,
        rescale: bool = False,
        *,
        include: Sequence[ModuleFilter] | None = None,
        exclude: Sequence[ModuleFilter] = (),
    ) -> None:
        optimizer = without_accelerate(check_optimizer(optimizer))
        for one in (optimizer, *wrapped_optimizers(optimizer)):
            if isinstance(one, AsynchronousSGD):
                raise ValueError(
                    "optimizer is an AsynchronousSGD or holds one, which updates asynchronously by itself; use it alone"
                )
            if one in _attached:
                raise ValueError(
                    "optimizer, or one that it holds, has an AsynchronousUpdate already; call its detach() first"
                )
        check_hooks(optimizer)
        rule = SubsetRule.of(locals())
        find = partial(find_convolutions, model, select, ModuleChoice(include, exclude))
        self._subsets = Subsets(Convolutions(find, optimizer, model), rule)
        self._optimizer = optimizer
        self._attach()

    def _attach(self) -> None:
        self._layout: list[_Layout] = []
        self._buffer: Tensor | None = None
        self._before_step: list[Tensor] = []
        self._begun: _Begun | None = None
        self._hooks = [
            self._optimizer.register_step_pre_hook(self._save),
            self._optimizer.register_step_post_hook(self._restore),
            *(other.register_step_pre_hook(self._refuse_outside) for other in wrapped_optimizers(self._optimizer)),
        ]
        _attached.add(self._optimizer)

    def detach(self) -> None:
        """Leave the optimizer as it was; its next step moves everything. Does nothing the second time."""
        for hook in self._hooks:
            hook.remove()
        if self._hooks:
            _attached.discard(self._optimizer)
        self._hooks = []
        self._layout, self._buffer, self._before_step, self._begun = [], None, [], None

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

    def __repr__(self) -> str:
        return f"<AsynchronousUpdate of {type(self._optimizer).__name__}, rate {self.rate}>"

    def __getstate__(self) -> dict[str, Any]:
        return {"_subsets": self._subsets, "_optimizer": self._optimizer, "attached": bool(self._hooks)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy, together with model and optimizer: it hooks into the copied optimizer."""
        self._subsets, self._optimizer = state["_subsets"], state["_optimizer"]
        if self._optimizer in _attached:
            raise ValueError(
                "a copy of an AsynchronousUpdate needs a copy of its optimizer and model: copy all at once"
            )
        self._attach()
        if not state["attached"]:
            self.detach()

    # Hooks without decorators: within_another_step() asks who called them.
    def _save(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if within_another_step(optimizer):
            return
        self._begun = None
        with torch.no_grad():
            self._begun = self._begin(counts=not only_makes_state(optimizer, (*args[1:], *kwargs.values())))

    def _restore(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._begun is None or within_another_step(optimizer):  # None: made within a step
            return
        begun, self._begun = self._begun, None
        with torch.no_grad():
            self._end(begun)
        if begun.counts:
            # What a GradScaler tells a fused optimizer, which then leaves out its step on the device.
            self._subsets.advance(skipped=getattr(optimizer, "found_inf", None))

    def _refuse_outside(self, other: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._begun is None:
            raise RuntimeError(
                f"{type(self._optimizer).__name__} has an AsynchronousUpdate, but the {type(other).__name__} in it "
                "steps outside of its step() (in SAM's second_step, say), where nothing is masked; call step(), or "
                f"detach() it and make one of that {type(other).__name__}"
            )

    def _begin(self, counts: bool) -> _Begun:
        bank, rescale = self._subsets.convolutions.bank(), self._subsets.rule.rescale
        selected = self._subsets.draw(bank)
        layout = _layout(bank.weights)
        if self._buffer is None or layout != self._layout:
            self._layout, self._buffer = layout, wk.unselected_buffer(bank)
            self._before_step = [torch.empty_like(weight) for weight in bank.weights] if rescale else []
        wk.save_unselected_(bank, selected, self._buffer)
        if rescale:
            torch._foreach_copy_(self._before_step, list(bank.weights))
        return _Begun(selected, self._buffer, layout, counts)

    def _end(self, begun: _Begun) -> None:
        bank = self._subsets.convolutions.targets.bank()
        layout = _layout(bank.weights)
        if [after[0] for after in layout] != [before[0] for before in begun.layout]:
            raise RuntimeError(
                "optimizer.step() changed the shape of a convolution's weight, so that no filter can be put back; "
                "exclude it, or detach() this AsynchronousUpdate"
            )
        if self._subsets.rule.rescale:
            self._stretch(bank)
        if layout == begun.layout:
            wk.restore_unselected_(bank, begun.selected, begun.buffer)
        else:
            _restore_by_value(bank, begun)

    def _stretch(self, bank: wk.FilterBank) -> None:
        """W + (what the optimizer added) / share, for all filters of the weights that have a gradient."""
        targets = self._subsets.convolutions.targets.items
        moved = sorted({i for i, t in zip(bank.position, targets, strict=True) if t.parameter.grad is not None})
        if not moved:
            return
        weights, before = [bank.weights[i] for i in moved], [self._before_step[i] for i in moved]
        shares = self._subsets.shares(bank)
        change = torch._foreach_sub(weights, before)
        torch._foreach_div_(change, [shares[i] for i in moved])
        torch._foreach_copy_(weights, torch._foreach_add(before, change))


def _layout(weights: Sequence[Tensor]) -> list[_Layout]:
    """All that the places of filters in the buffer depend on."""
    return [(weight.shape, weight.stride(), weight.dtype, weight.device) for weight in weights]


def _restore_by_value(bank: wk.FilterBank, begun: _Begun) -> None:
    """What an optimizer gave other strides or another dtype, by way of weights as they were."""
    before = [
        torch.empty_strided(shape, stride, dtype=dtype, device=device) for shape, stride, dtype, device in begun.layout
    ]
    wk.restore_unselected_(wk.FilterBank(before, bank.filter_dims), begun.selected, begun.buffer)
    for weight, old, dim, moves in zip(bank.weights, before, bank.filter_dims, bank.split(begun.selected), strict=True):
        shape = [1] * weight.dim()
        shape[dim] = -1
        weight.copy_(torch.where(moves.to(weight.device).view(shape), weight, old.to(weight)))
