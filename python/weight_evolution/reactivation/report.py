"""What a unit reactivation found and did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from we_kernels import Readback

from ..reports import Report, Rows, plain_dict


class ReactivationReport(Report):
    """Result of `UnitReactivation.step`; reading it may wait for the device, making it does not."""

    def __init__(
        self,
        iteration: int,
        names: Sequence[str],
        sizes: Sequence[int],
        revived: Tensor,
        activations: Tensor | None,
        skipped: Mapping[str, str],
    ) -> None:
        self.iteration = iteration
        """Calls of `UnitReactivation.step` until then, from 1."""
        self.units = dict(zip(names, sizes, strict=True))
        """Layer name -> how many units it has."""
        self.skipped = dict(skipped)
        """Layer name -> why its units take no part."""
        self._measured = activations is not None
        values = [revived.float()] if activations is None else [revived.float(), activations]
        self._values = Readback(torch.cat(values))

    @cached_property
    def masks(self) -> dict[str, Tensor]:
        """Layer name -> bool [units] on the CPU: which started anew."""
        return {name: values.bool() for name, values in self._by_name(0).items()}

    @cached_property
    def revived(self) -> dict[str, int]:
        """Layer name -> how many units started anew."""
        return {name: int(mask.sum()) for name, mask in self.masks.items()}

    @property
    def total(self) -> int:
        """Units that started anew, of all layers."""
        return sum(self.revived.values())

    @cached_property
    def activation(self) -> dict[str, Tensor]:
        """Layer name -> float32 [units] on the CPU: mean absolute activation before.

        Raises:
            ValueError: it was not measured, since scores are by L1 norm.
        """
        if not self._measured:
            raise ValueError('activations were not measured with importance="l1"')
        return self._by_name(1)

    @property
    def dead(self) -> dict[str, int]:
        """Layer name -> units that never fired."""
        return {name: int((activation == 0).sum()) for name, activation in self.activation.items()}

    def _by_name(self, part: int) -> dict[str, Tensor]:
        count = sum(self.units.values())
        values = torch.tensor(self._values.values()[part * count : (part + 1) * count])
        return dict(zip(self.units, values.split(list(self.units.values())), strict=True))

    def summary(self) -> str:
        """How many units started anew; waits for the device."""
        dead = f", {sum(self.dead.values())} never fired" if self._measured else ""
        units = sum(self.units.values())
        return f"reactivation at iteration {self.iteration}: {self.total} of {units} units start anew{dead}"

    def scalars(self) -> dict[str, float]:
        """Totals: units, dead (where activations were measured), revived."""
        return {name: sum(counts.values()) for name, counts in self._counts.items()}

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain numbers, strings, lists and dicts; ``mask`` by layer says which units."""
        counts = self._counts
        layers = {
            name: {**{count: of[name] for count, of in counts.items()}, "mask": self.masks[name]} for name in self.units
        }
        return plain_dict(
            {"iteration": self.iteration, "totals": self.scalars(), "layers": layers, "skipped": self.skipped}
        )

    def table(self) -> str:
        """Every layer, and those that take no part."""
        total = ["all", *(str(sum(counts.values())) for counts in self._counts.values())]
        return "\n".join(
            [f"reactivation at iteration {self.iteration}", *self._rows().lines(total)]
            + [f"skipped {name}: {reason}" for name, reason in self.skipped.items()]
        )

    def _rows(self) -> Rows:
        counts = self._counts
        cells = [[name, *(str(of[name]) for of in counts.values())] for name in self.units]
        return Rows(["layer", *counts], cells, list(self.revived.values()))

    @property
    def _size(self) -> int:
        return len(self.units)

    @property
    def _counts(self) -> dict[str, dict[str, int]]:
        dead = {"dead": self.dead} if self._measured else {}
        return {"units": self.units, **dead, "revived": self.revived}
