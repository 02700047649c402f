"""One network of a ring: its tensors as a bank, and what it tells the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

import we_kernels as wk

from ..measures.invalid_filters import PUBLISHED_THRESHOLDS, as_rows, count_under, filter_norms
from ..model.module_filters import ModuleChoice
from ..model.wrappers import named_modules
from ..sharding.local_part import GATHER, is_distributed, local_part
from .coefficients import filter_coefficients, layer_coefficients
from .parts import FilterPairs, Parts, find_norms, find_parts, pair_up
from .rule import Rule

if TYPE_CHECKING:
    from .exchange import Exchange

N = TypeVar("N", bound="Network")
_NOTHING = torch.empty(0, dtype=torch.float64, device="cpu")


@dataclass(frozen=True)
class Information:
    """What the neighbours of a network need to know of it, on the CPU."""

    layers: Tensor
    """float64 [L]: information of each convolution, by the criterion."""
    scales: Tensor
    """float64: scales of the BatchNorms, one after the other; empty at level "layer"."""
    invalid: tuple[int, ...]
    """Filters under each published threshold."""


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
        self._locate()

    @property
    def per(self) -> Literal["tensor", "filter"]:
        """What has one coefficient in the bank."""
        return "tensor" if self.pairs is None else "filter"

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        return self.parts.items[0].tensor.device

    @property
    def own_convs(self) -> Mapping[str, _ConvNd]:
        """Convolutions whose filters this process counts: all."""
        return self.parts.convs

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Everything that is blended or measured, as the model has it: parts, and what is measured though frozen."""
        yield from ((part.name, part.whole) for part in self.parts.items)
        yield from ((name, conv.weight) for name, conv in self.parts.convs.items())
        yield from self.scales().items()

    def scales(self) -> dict[str, Tensor]:
        """What it is -> the scale of each BatchNorm that makes coefficients, as the model has it."""
        if self.pairs is None:
            return {}
        convs = list(self.parts.convs)
        return {f"the scale behind {convs[i]}": norm.weight for i, norm in self.pairs.norms.items()}

    def describe(self) -> dict[str, str]:
        """What must be equal in all networks of a ring; to be compared by `first_difference`."""
        described = self.parts.describe()
        if self.pairs is not None:
            for i, name in enumerate(self.parts.convs):
                described[name] += f", {'' if i in self.pairs.norms else 'not '}followed by a BatchNorm"
        return described

    def digest(self) -> str:
        """Of `describe`, to compare with few bytes."""
        return sha256(repr(list(self.describe().items())).encode()).hexdigest()

    def bank(self) -> wk.FilterBank:
        """All parts.

        Raises:
            TypeError, ValueError: one has no values, or not in memory of its own.
        """
        bank = self.bank_of([part.tensor for part in self.parts.items])
        bank.check()
        return bank

    def bank_of(self, tensors: Sequence[Tensor], first: int = 0) -> wk.FilterBank:
        """A bank of tensors that stand for the parts from the ``first`` on; without those that are empty here."""
        parts = self.parts.items[first : first + len(tensors)]
        held = [(part, *part.filters(t)) for part, t in zip(parts, tensors, strict=True) if t.numel()]
        return wk.FilterBank(
            [view for _, view, _ in held], [dim for _, _, dim in held], names=[part.name for part, _, _ in held]
        )

    def first_bad(self) -> str | None:
        """The name of the first tensor that is NaN or infinite; waits for the device."""
        held = {name: part for name, whole in self.named_tensors() if (part := local_part(whole.detach())).numel()}
        if not held:
            return None
        largest = [torch.linalg.vector_norm(tensor, torch.inf).double() for tensor in held.values()]
        finite = torch.stack(largest).isfinite().tolist()
        return next((name for name, good in zip(held, finite, strict=True) if not good), None)

    def information(self, rule: Rule) -> Information:
        """What the network tells the others; waits for its device. All of it must be finite (`first_bad`)."""
        convs = local_weights(self.parts.convs)
        if rule.criterion == "entropy":
            bank = wk.FilterBank([weight for _, weight in convs.values()], names=list(convs))
            layers = wk.weight_entropy(bank, rule.bins).double().cpu()
        else:
            layers = of_layers(of_filters(convs, rule), list(self.filters_by_name().values()), rule)
        scales = [scale.detach().double().cpu() for scale in self.scales().values()]
        return Information(layers, torch.cat([_NOTHING, *scales]), self.invalid())

    def of_all(self: N, here: Sequence[N], exchange: Exchange, rule: Rule) -> list[Information]:
        """The information of every network of an exchange, of which those ``here`` are this rank's; collective."""
        ranks = exchange.agree(lambda: self.information(rule), "exchanging entropies")
        return [ranks[network[0]] for network in exchange.members]

    def total(self, exchange: Exchange, counts: Sequence[Mapping[int, tuple[int, ...]]]) -> list[tuple[int, ...]]:
        """What was counted of each network, of what each rank has counted of its own, by their numbers."""
        return [counts[ranks[0]][i] for i, ranks in enumerate(exchange.members)]

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

    def vector(self, coefficients: Mapping[str, Tensor], bank: wk.FilterBank) -> Tensor:
        """The coefficients of the bank's parts as `we_kernels.blend_` takes them: [L], or [F] at level "filter"."""
        own = [coefficients[name] for name in bank.names]
        if self.pairs is None:
            return torch.stack(own).to(bank.device)
        return torch.cat([c.expand(size) for c, size in zip(own, bank.sizes, strict=True)]).to(bank.device)

    def invalid(self, new: Mapping[str, Tensor] | None = None) -> tuple[int, ...]:
        """Filters under each published threshold, as they are or with the new values of some convolutions."""
        convs = local_weights(self.own_convs)
        norms = filter_norms((conv, (new or {}).get(name, weight)) for name, (conv, weight) in convs.items())
        return tuple(count_under(norms, PUBLISHED_THRESHOLDS))

    def filters_by_name(self) -> dict[str, int]:
        """Convolution's weight -> number of its filters."""
        return {name: conv.out_channels for name, conv in self.parts.convs.items()}

    def _locate(self) -> None:
        """Whether the parts are where they should be: all here."""
        for name, tensor in self.named_tensors():
            if is_distributed(tensor):
                raise TypeError(
                    f"{name} is a DTensor, of which each rank holds a part; to graft sharded networks shard them first "
                    f"and then make the FilterGrafting, on all ranks (docs/scaling.md), or {GATHER}"
                )


def local_weights(convs: Mapping[str, _ConvNd]) -> dict[str, tuple[_ConvNd, Tensor]]:
    """Name -> convolution and its weight; of a DTensor this rank's part."""
    return {name: (conv, local_part(conv.weight.detach())) for name, conv in convs.items()}


def of_filters(convs: Mapping[str, tuple[_ConvNd, Tensor]], rule: Rule) -> Tensor:
    """float64 [filters], on the CPU: information of every filter, by the criteria that have one."""
    if rule.criterion == "l1":
        return filter_norms(convs.values())
    bank = wk.FilterBank([as_rows(module, weight) for module, weight in convs.values()], names=list(convs))
    return wk.weight_entropy(bank, rule.bins, per="filter").double().cpu()


def of_layers(filters: Tensor, sizes: Sequence[int], rule: Rule) -> Tensor:
    """float64 [L]: information of each convolution, of that of its filters."""
    return torch.stack([part.sum() if rule.criterion == "l1" else part.mean() for part in filters.split(list(sizes))])
