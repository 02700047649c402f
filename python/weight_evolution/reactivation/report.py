"""What a unit reactivation found and did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from we_kernels import Readback

from ..tables import table


class ReactivationReport:
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

    def __str__(self) -> str:
        columns = [("layer", self.units), ("units", self.units), ("revived", self.revived)]
        if self._measured:
            columns.insert(2, ("dead", self.dead))
        rows = [[heading for heading, _ in columns]]
        rows += [[name, *(str(counts[name]) for _, counts in columns[1:])] for name in self.units]
        rows.append(["all", *(str(sum(counts.values())) for _, counts in columns[1:])])
        return "\n".join(
            [f"reactivation at iteration {self.iteration}", *table(rows)]
            + [f"skipped {name}: {reason}" for name, reason in self.skipped.items()]
        )
