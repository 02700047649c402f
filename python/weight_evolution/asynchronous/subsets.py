"""`Subsets`: which filters move in which step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

import we_kernels as wk
from we_kernels.checks import check_choice

from ..arguments import Checked, check_count, check_flag, check_share, checked
from ..model.state import check_same_model, check_same_options, check_state
from .convolutions import Convolutions
from .targets import SELECTS, expected_share

PUBLISHED_RATE = 0.5
_FORMAT = 1
# Parts of names that states of earlier versions hold for wrapped models.
_WRAPPERS = {"module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}


@dataclass(frozen=True)
class SubsetRule(Checked):
    """What decides about subsets, as `AsynchronousUpdate` documents it."""

    rate: float = checked(PUBLISHED_RATE, check_share)
    seed: int = checked(0, check_count)
    select: str = checked("filters", check_choice, SELECTS)
    replacement: bool = checked(False, check_flag)
    rescale: bool = checked(False, check_flag)


class Subsets:
    """Random subsets of the filters of many weights, one after the other, and how far it has come."""

    def __init__(self, convolutions: Convolutions, rule: SubsetRule) -> None:
        self.convolutions, self.rule = convolutions, rule
        # On the device, so that a captured graph counts on; reading it waits.
        self.step = torch.zeros(1, dtype=torch.int64, device=convolutions.bank().device)

    def draw(self, bank: wk.FilterBank) -> Tensor:
        """bool [F]: what moves in the next step, of the filters of this rank; `advance` afterwards."""
        if self.step.device != bank.device:
            self.step = self.step.to(bank.device)
        placement = self.convolutions.targets.placement
        if placement is None:
            return self._select(bank, self.step)
        return placement.own(self._select(self.convolutions.targets.every_filter(), self.step))

    def advance(self, skipped: Tensor | None = None) -> None:
        """Go on to the next subset, unless ``skipped`` (a number on the device) is not 0."""
        self.step += 1 if skipped is None else (skipped == 0).reshape(1).to(self.step)

    def shares(self, bank: wk.FilterBank) -> list[float]:
        """Expected share of each weight that moves."""
        placement = self.convolutions.targets.placement
        sizes = bank.sizes if placement is None else placement.sizes
        return [expected_share(size, self.rule.rate, self.rule.replacement) for size in sizes]

    def selection(self, step: int | None) -> dict[str, Tensor]:
        """Parameter name -> bool on the CPU; the next step for None."""
        bank = self._every_filter()
        at = self.step.to(bank.device) if step is None else check_count(step, "step")
        return dict(zip(bank.names, bank.split(self._select(bank, at).cpu()), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and strings; waits for the device."""
        return {
            "format": _FORMAT,
            "step": int(self.step),
            **asdict(self.rule),
            "filters": self._filters(),
        }

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError, naming the first difference, if the state cannot be loaded here."""
        options = {name: value for name, value in asdict(self.rule).items() if name not in ("rate", "seed")}
        kinds = {"step": int, "seed": int, "rate": float, "select": str, "replacement": bool, "rescale": bool}
        check_state(state, "AsynchronousUpdate or AsynchronousSGD", (_FORMAT,), {**kinds, "filters": dict})
        check_share(state["rate"], "state['rate']")
        check_same_options(state, options, "object")
        filters = state["filters"]
        own = self._filters()
        if list(map(_without_wrappers, filters)) == list(map(_without_wrappers, own)):
            filters = dict(zip(own, filters.values(), strict=True))
        check_same_model(filters, own, "{} filters")
        if list(own) != list(filters):
            raise ValueError("state is of another model: its layers are in another order")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, with its seed and rate; raises what `check_state` raises."""
        self.check_state(state)
        self.rule = replace(self.rule, seed=state["seed"], rate=state["rate"])
        self.step.fill_(state["step"])

    def _select(self, bank: wk.FilterBank, step: int | Tensor) -> Tensor:
        rule = self.rule
        return wk.select_filters(bank, rule.rate, seed=rule.seed, step=step, replacement=rule.replacement)

    def _every_filter(self) -> wk.FilterBank:
        self.convolutions.bank()  # looks at the model
        return self.convolutions.targets.every_filter()

    def _filters(self) -> dict[str, int]:
        bank = self._every_filter()
        return dict(zip(bank.names, bank.sizes, strict=True))


class OfSubsets:
    """What all that moves `Subsets` of a model's filters can tell."""

    _subsets: Subsets

    @property
    def rate(self) -> float:
        """The share of filters that moves; may be changed between steps."""
        return self._subsets.rule.rate

    @rate.setter
    def rate(self, rate: float) -> None:
        self._subsets.rule = replace(self._subsets.rule, rate=rate)

    @property
    def steps(self) -> int:
        """Steps so far; the next draws the subset of this number. Waits for the device."""
        return int(self._subsets.step)

    @property
    def step_count(self) -> int:
        """The same as `steps`."""
        return self.steps

    @property
    def skipped(self) -> dict[str, str]:
        """Weights of convolutions that do not take part, and why."""
        return dict(self._subsets.convolutions.targets.skipped)

    def selection(self, step: int | None = None) -> dict[str, Tensor]:
        """Parameter name -> bool [N] on the CPU: the filters (or input channels) that move in a step (the next)."""
        return self._subsets.selection(step)


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)
