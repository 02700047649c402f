"""`Subsets`: which filters move in which step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import we_kernels as wk

from .convolutions import Convolutions
from .targets import check_count, check_rate, expected_share

_FORMAT = 1
# Parts of names that states of earlier versions hold for wrapped models.
_WRAPPERS = {"module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}


class Subsets:
    """Random subsets of the filters of many weights, one after the other, and how far it has come."""

    def __init__(
        self, convolutions: Convolutions, *, rate: float, seed: int, select: str, replacement: bool, rescale: bool
    ) -> None:
        self.convolutions = convolutions
        self.rate = check_rate(rate)
        self.seed = check_count(seed, "seed")
        self.select = select
        self.replacement = bool(replacement)
        self.rescale = bool(rescale)
        # On the device, so that a captured graph counts on; reading it waits.
        self.step = torch.zeros(1, dtype=torch.int64, device=convolutions.bank().device)

    def draw(self, bank: wk.FilterBank) -> Tensor:
        """bool [F]: what moves in the next step; `advance` afterwards."""
        if self.step.device != bank.device:
            self.step = self.step.to(bank.device)
        return self._select(bank, self.step)

    def advance(self, skipped: Tensor | None = None) -> None:
        """Go on to the next subset, unless ``skipped`` (a number on the device) is not 0."""
        self.step += 1 if skipped is None else (skipped == 0).reshape(1).to(self.step)

    def shares(self, bank: wk.FilterBank) -> list[float]:
        """Expected share of each weight that moves."""
        return [expected_share(size, self.rate, self.replacement) for size in bank.sizes]

    def selection(self, step: int | None) -> dict[str, Tensor]:
        """Parameter name -> bool on the CPU; the next step for None."""
        bank = self.convolutions.bank()
        at = self.step.to(bank.device) if step is None else check_count(step, "step")
        return dict(zip(bank.names, bank.split(self._select(bank, at).cpu()), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and strings; waits for the device."""
        bank = self.convolutions.bank()
        return {
            "format": _FORMAT,
            "step": int(self.step),
            "seed": self.seed,
            "rate": self.rate,
            "select": self.select,
            "replacement": self.replacement,
            "rescale": self.rescale,
            "filters": dict(zip(bank.names, bank.sizes, strict=True)),
        }

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError, naming the first difference, if the state cannot be loaded here."""
        try:
            version, filters = state["format"], dict(state["filters"])
            options = {name: state[name] for name in ("select", "replacement", "rescale")}
            check_count(state["step"], "state['step']")
            check_count(state["seed"], "state['seed']")
            check_rate(state["rate"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"state is not one of asynchronous updates ({error!r})") from None
        if version != _FORMAT:
            raise ValueError(f"state has format {version}, this version reads {_FORMAT}")
        for name, value in options.items():
            if value != getattr(self, name):
                raise ValueError(f"state has {name}={value!r}, this object {getattr(self, name)!r}")
        bank = self.convolutions.bank()
        own = dict(zip(bank.names, bank.sizes, strict=True))
        if list(map(_without_wrappers, filters)) == list(map(_without_wrappers, own)):
            filters = dict(zip(own, filters.values(), strict=True))
        for name in [*own, *filters]:
            if own.get(name) != filters.get(name):
                raise ValueError(
                    f"state is of another model: {name} has {filters.get(name)} filters there and {own.get(name)} here"
                )
        if list(own) != list(filters):
            raise ValueError("state is of another model: its layers are in another order")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken, with its seed and rate; raises what `check_state` raises."""
        self.check_state(state)
        self.seed, self.rate = state["seed"], state["rate"]
        self.step.fill_(state["step"])

    def _select(self, bank: wk.FilterBank, step: int | Tensor) -> Tensor:
        return wk.select_filters(bank, self.rate, seed=self.seed, step=step, replacement=self.replacement)


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)
