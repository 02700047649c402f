"""One network of a ring: its tensors as a bank, and what it tells the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

import we_kernels as wk

from ..measures.invalid_filters import PUBLISHED_THRESHOLDS, as_rows, count_under, filter_norms
from ..model.module_filters import ModuleChoice
from ..model.wrappers import named_modules
from .coefficients import filter_coefficients, layer_coefficients
from .parts import FilterPairs, Parts, find_norms, find_parts, pair_up
from .rule import Rule


@dataclass(frozen=True)
class Information:
    """What the neighbours of a network need to know of it, on the CPU."""

    layers: Tensor
    """float64 [L]: information of each convolution, by the criterion."""
    scales: Tensor
    """float64: scales of the BatchNorms, one after the other; empty at level "layer"."""
    invalid: tuple[int, ...]
    """Filters under each published threshold."""
    bad: int
    """Number of the first part that is not finite, or -1."""

    def pack(self) -> Tensor:
        """As one float64 vector."""
        return torch.cat(
            [torch.tensor([self.bad, *self.invalid], dtype=torch.float64, device="cpu"), self.layers, self.scales]
        )

    @staticmethod
    def unpack(vector: Tensor, layers: int) -> Information:
        """The inverse of `pack`, for a network of so many convolutions."""
        bad, *invalid = (int(value) for value in vector[: 1 + len(PUBLISHED_THRESHOLDS)].tolist())
        rest = vector[1 + len(PUBLISHED_THRESHOLDS) :]
        return Information(rest[:layers], rest[layers:], tuple(invalid), bad)


@dataclass(frozen=True)
class Choice:
    """What of a model takes part, and how its convolutions and BatchNorms are paired."""

    level: str
    modules: ModuleChoice
    batch_norm_pairs: Mapping[str, str | None] | None
    example_inputs: tuple[Tensor, ...] | None


class Network:
    """A model in a ring. Models change, so `look` at it before each grafting."""

    parts: Parts
    pairs: FilterPairs | None

    def __init__(self, model: nn.Module, choice: Choice) -> None:
        self.model = model
        self._choice = choice
        self._structure: list[tuple[str, type]] = []
        self.look()

    def look(self) -> None:
        """Find what takes part now; the model is traced anew only if it has other modules than before.

        Raises:
            TypeError, ValueError: something cannot be grafted (any more).
        """
        choice = self._choice
        parts = find_parts(self.model, choice.modules)
        pairs = None
        if choice.level == "filter":
            structure: list[tuple[str, type]] = [(name, type(module)) for name, module in named_modules(self.model)]
            structure += [(name, nn.Parameter) for name in parts.convs]
            if structure != self._structure:
                self._norms = find_norms(self.model, parts, choice.batch_norm_pairs, choice.example_inputs)
                self._structure = structure
            pairs = pair_up(self.model, parts, self._norms)
        self.parts, self.pairs = parts, pairs

    @property
    def per(self) -> Literal["tensor", "filter"]:
        """What has one coefficient in the bank."""
        return "tensor" if self.pairs is None else "filter"

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return self.parts.items[0].tensor.device

    def describe(self) -> dict[str, str]:
        """What must be equal in all networks of a ring; to be compared by `first_difference`."""
        described = self.parts.describe()
        if self.pairs is not None:
            for i, name in enumerate(self.parts.convs):
                described[name] += f", {'' if i in self.pairs.norms else 'not '}followed by a BatchNorm"
        return described

    def bank(self) -> wk.FilterBank:
        """All parts.

        Raises:
            TypeError, ValueError: one has no values, or not in memory of its own.
        """
        bank = self.bank_of([part.tensor for part in self.parts.items])
        bank.check()
        return bank

    def bank_of(self, tensors: Sequence[Tensor], first: int = 0) -> wk.FilterBank:
        """A bank of tensors that stand for the parts from the ``first`` on."""
        parts = self.parts.items[first : first + len(tensors)]
        views, dims = zip(*(part.filters(t) for part, t in zip(parts, tensors, strict=True)), strict=True)
        return wk.FilterBank(views, dims, names=[part.name for part in parts])

    def information(self, rule: Rule) -> Information:
        """What the network tells the others; waits for its device."""
        convs = [(conv, conv.weight.detach()) for conv in self.parts.convs.values()]
        names = list(self.parts.convs)
        norms = filter_norms(convs)
        scales = torch.empty(0, dtype=torch.float64, device="cpu")
        if self.pairs is not None and self.pairs.norms:
            scales = torch.cat([norm.weight.detach().double() for norm in self.pairs.norms.values()]).cpu()
        bad = self._first_bad()
        if bad >= 0:
            layers = torch.zeros(len(convs), dtype=torch.float64, device="cpu")
        elif rule.criterion == "l1":
            layers = torch.stack([part.sum() for part in norms.split([m.out_channels for m, _ in convs])])
        elif rule.criterion == "filter-entropy":
            bank = wk.FilterBank([as_rows(module, weight) for module, weight in convs], names=names)
            entropies = bank.split(wk.weight_entropy(bank, rule.bins, per="filter").double())
            layers = torch.stack([part.mean() for part in entropies]).cpu()
        else:
            bank = wk.FilterBank([weight for _, weight in convs], names=names)
            layers = wk.weight_entropy(bank, rule.bins).double().cpu()
        return Information(layers, scales, tuple(count_under(norms, PUBLISHED_THRESHOLDS)), bad)

    def coefficients(self, own: Information, neighbour: Information, rule: Rule) -> dict[str, Tensor]:
        """Part name -> float32 CPU tensor: [] for all of it, or [N], one per filter."""
        layers = layer_coefficients(
            own.layers,
            neighbour.layers,
            strength=rule.strength,
            sharpness=rule.sharpness,
            rounded=rule.round_coefficient,
        )
        filters: dict[int, Tensor] = {}
        of_part: dict[str, int] = {}
        if self.pairs is not None:
            of_part = self.pairs.of_part
            sizes = [norm.num_features for norm in self.pairs.norms.values()]
            both = filter_coefficients(own.scales, neighbour.scales).split(sizes)
            filters = dict(zip(self.pairs.norms, both, strict=True))
        return {
            part.name: (filters[of_part[part.name]] if part.name in of_part else layers[part.conv]).float()
            for part in self.parts.items
        }

    def vector(self, coefficients: dict[str, Tensor], bank: wk.FilterBank) -> Tensor:
        """The coefficients of the bank's parts as `we_kernels.blend_` takes them: [L], or [F] at level "filter"."""
        own = [coefficients[name] for name in bank.names]
        if self.pairs is None:
            return torch.stack(own).to(bank.device)
        return torch.cat([c.expand(size) for c, size in zip(own, bank.sizes, strict=True)]).to(bank.device)

    def invalid(self, weights: Sequence[Tensor] | None = None) -> tuple[int, ...]:
        """Filters under each published threshold, of the model or of weights that stand for its convolutions'."""
        modules = self.parts.convs.values()
        weights = [module.weight for module in modules] if weights is None else weights
        return tuple(count_under(filter_norms(zip(modules, weights, strict=True)), PUBLISHED_THRESHOLDS))

    def filters_by_name(self) -> dict[str, int]:
        """Convolution's weight -> number of its filters."""
        return {name: conv.out_channels for name, conv in self.parts.convs.items()}

    def _first_bad(self) -> int:
        largest = [torch.linalg.vector_norm(part.tensor, torch.inf).double() for part in self.parts.items]
        finite = torch.stack(largest).isfinite().cpu()
        return -1 if bool(finite.all()) else int((~finite).nonzero()[0, 0])
