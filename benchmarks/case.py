"""One benchmark case: the weights of a network, what an evolution needs beside them, and their way back."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks import shapes
from we_kernels import FilterBank

LOCAL_RATIO = 0.1
NORM_RATE = 0.05


class Case:
    """A network's filters as an evolution sees them; `restore` undoes what an evolution did.

    Args:
        model: a key of `shapes.MODELS`.
        rate: of the convolutions. BatchNorm scales and shifts have 0.05, the published rate.
        norms: take BatchNorm scales and shifts along, as two more groups.
        rule: of the crossover.
        device, dtype: of the weights.
    """

    def __init__(
        self,
        model: str,
        rate: float = 0.2,
        *,
        norms: bool = False,
        rule: str = "paper",
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.convs = shapes.MODELS[model]()
        self.parameters = shapes.make_weights(self.convs, device=device, dtype=dtype)
        if norms:
            self.weights = [tensor for layer in zip(*self.parameters, strict=True) for tensor in layer]
            self.groups = [0, 1, 2] * len(self.convs)
        else:
            self.weights = list(self.parameters.convs)
            self.groups = [0] * len(self.convs)
        self.rates = [rate, NORM_RATE, NORM_RATE] if norms else [rate]
        self._rates_on_device = torch.tensor(self.rates, dtype=torch.float64, device=device)
        self.rule = rule
        self.bank = FilterBank(self.weights, groups=self.groups)
        self.starvation = torch.zeros(len(self.rates), dtype=torch.int32, device=device)
        self.starvation_limit = len(self.convs) / 2
        self.set_originals()

    @property
    def selection_arguments(self) -> dict[str, object]:
        """Keyword arguments of `we_kernels.match_filters` and (with ``rule``) of `evolve_`."""
        return {
            "rate": self._rates_on_device,
            "local_ratio": LOCAL_RATIO,
            "starvation": self.starvation,
            "starvation_limit": self.starvation_limit,
        }

    @property
    def weight_bytes(self) -> int:
        """Size of all weights."""
        return sum(weight.numel() * weight.element_size() for weight in self.weights)

    def crossover_bytes(self, donor: Tensor) -> int:
        """What a crossover has to move: it reads the replaced filter and its donor, and writes the former."""
        counts = [int((rows >= 0).sum()) for rows in self.bank.split(donor)]
        rows = zip(counts, self.weights, strict=True)
        return sum(3 * count * weight[0].numel() * weight.element_size() for count, weight in rows)

    def set_originals(self) -> None:
        """The weights as they are now are what `restore` brings back."""
        self._originals = [weight.clone() for weight in self.weights]

    def restore(self) -> None:
        """The original weights; starvation counters at zero."""
        torch._foreach_copy_(self.weights, self._originals)
        self.starvation.zero_()
