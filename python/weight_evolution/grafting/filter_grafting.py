"""`FilterGrafting`: one call after each epoch, for all networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from operator import attrgetter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

import we_kernels as wk
from we_kernels.runtime.memory import find_overlap

from ..arguments import check_count, check_inputs
from ..measures.invalid_filters import PUBLISHED_THRESHOLDS
from ..model.module_filters import ModuleChoice, ModuleFilter
from ..model.state import UNLESS_LENIENT, check_same_model, check_same_options, check_state
from .exchange import Exchange, check_group
from .network import Choice, Information, Network
from .parts import first_difference
from .report import GraftingReport
from .ring import Ring
from .rule import Rule
from .sharded_network import ShardedNetwork, network_of
from .side_by_side import SideBySide, group_of

_STATE_FORMAT = 1
_PUBLISHED = Rule()


class FilterGrafting:
    """K networks of one structure, trained side by side, take over a part of each other's weights.

    Call `step` after each epoch. Network i receives from network i - 1, network 0 from the last, all from the weights
    before the step: ``W <- w * W + (1 - w) * W_neighbour`` with ``w = (A / pi) * atan(c * (H - H_neighbour)) + 0.5``
    for each convolution. What follows a convolution in module order, up to the next one, is blended with its
    coefficient: bias, norms with their running statistics, Linears; what comes before the first convolution, with that
    of the first. Left out (`skipped`): integer buffers, buffers that are not saved, frozen parameters. A shared
    parameter is blended once. Optimizers are not touched: each network keeps its momentum, as published.

    Source: Meng et al., "Filter Grafting for Deep Neural Networks", CVPR 2020 (arXiv 2001.05868).

    Args:
        models: two networks or more, on any devices, each on one; or all of DTensors (FSDP2; docs/scaling.md) spread
            alike over one mesh, so that each of its ranks has a part of each. Or one network, with ``process_group``:
            each process then has its own, or its part of one of DTensors. Wrappers (torch.compile,
            DistributedDataParallel, activation checkpointing, ...) are seen through.
        strength: A, in [0, 1]; coefficients are within 0.5 +- A / 2. 0: plain averaging with the neighbour.
        sharpness: c, from 0.
        level: "layer", or "filter": filter j and the elements j of the BatchNorm behind it are blended with
            ``|gamma_j| / (|gamma_j| + |gamma_neighbour,j|)``, 0.5 if both are 0. Everything that has no such BatchNorm
            is blended as at level "layer"; the report names those convolutions.
        criterion: of the information of a convolution: "entropy" of all its weights, "filter-entropy", the mean of the
            entropies of its filters, or "l1", its L1 norm.
        bins: of the entropy.
        round_coefficient: to two decimals, as the released program does (at level "layer").
        process_group: of torch.distributed, for one model; the default group when left out and initialized. All its
            ranks make a FilterGrafting and call `step` together. For a list of sharded networks a group of just the
            ranks of their mesh; left out: the mesh's own, or, if it has several dimensions (HSDP), the default group.
        ranks_per_network: a network is this many consecutive ranks of the group, which train it data-parallel and hold
            equal weights; 1 when left out, which a model in DistributedDataParallel refuses. The coefficients are those
            of the first of them. The ranks of a network of DTensors are those of its mesh.
        include: only modules of these names (with all inside them), name patterns (``*``) or types; names of single
            parameters and buffers count, too.
        exclude: no modules, parameters or buffers of these names, patterns or types. A convolution that is left out is
            not measured either: what follows it has the coefficient of the one before.
        batch_norm_pairs: conv name -> BatchNorm name or None, where the traced graph should not decide.
        example_inputs: for torch.export, where torch.fx cannot trace the model (level "filter").

    Raises:
        TypeError, ValueError: name the argument, or the first difference of two networks. Over a process group it is
            raised on all ranks, or `ExchangeError` where another rank has the error.
    """

    def __init__(
        self,
        models: Sequence[nn.Module] | nn.Module,
        *,
        strength: float = _PUBLISHED.strength,
        sharpness: float = _PUBLISHED.sharpness,
        level: str = _PUBLISHED.level,
        criterion: str = _PUBLISHED.criterion,
        bins: int = _PUBLISHED.bins,
        round_coefficient: bool = _PUBLISHED.round_coefficient,
        process_group: dist.ProcessGroup | None = None,
        ranks_per_network: int | None = None,
        include: Sequence[ModuleFilter] | None = None,
        exclude: Sequence[ModuleFilter] = (),
        batch_norm_pairs: Mapping[str, str | None] | None = None,
        example_inputs: Tensor | tuple[Tensor, ...] | None = None,
    ) -> None:
        self._rule = Rule.of(locals())
        choice = Choice(level, ModuleChoice(include, exclude), batch_norm_pairs, check_inputs(example_inputs))
        self._steps = 0
        self._exchange: Exchange | None = None
        """With other ranks."""

        if isinstance(models, nn.Module):
            if ranks_per_network is not None:
                ranks_per_network = check_count(ranks_per_network, "ranks_per_network", 1)
            self._exchange = Ring(check_group(process_group), ranks_per_network)
            self._networks = self._make_with_others([models], choice, self._exchange)
            return
        if ranks_per_network is not None:
            raise ValueError("ranks_per_network is for one model per rank; pass that model alone")
        models = _check_list(models)
        if (group := group_of(models, process_group)) is not None:
            exchange = SideBySide(group, len(models))
            self._networks = self._make_with_others(models, choice, exchange)
            if isinstance(self._networks[0], ShardedNetwork):  # else only what takes no part is sharded
                self._exchange = exchange
        else:
            self._networks = _make(models, choice)
            _check_together(self._networks)

    strength = property(attrgetter("_rule.strength"), doc="Read-only, as all options are.")
    sharpness = property(attrgetter("_rule.sharpness"))
    level = property(attrgetter("_rule.level"))
    criterion = property(attrgetter("_rule.criterion"))
    bins = property(attrgetter("_rule.bins"))
    round_coefficient = property(attrgetter("_rule.round_coefficient"))

    @property
    def steps(self) -> int:
        """Steps so far."""
        return self._steps

    @property
    def skipped(self) -> dict[str, str]:
        """Parameters and buffers that are not grafted, and why."""
        return dict(self._networks[0].parts.skipped)

    @torch.no_grad()
    def step(self) -> GraftingReport:
        """Graft all networks once; waits for their devices.

        Over a process group it is collective. When it raises, the weights of this rank are unchanged. What was frozen,
        thawed or replaced since the last step is followed, as long as it is the same in all networks.

        Raises:
            TypeError, ValueError: a network cannot be grafted any more, or differs from the others; says where.
            NonFiniteWeightError: a weight or buffer of some network is NaN or infinite; nothing was changed.
            ExchangeError: another rank failed, died or did not come within the group's time-out.
        """
        if self._exchange is None:
            before, after = self._step_in_process()
        else:
            before, after = self._step_with_others(self._exchange)
        network = self._networks[0]
        coefficients = _all_coefficients(network, before, self._rule)
        report = GraftingReport(
            step=self._steps,
            level=self._rule.level,
            criterion=self._rule.criterion,
            entropies=[dict(zip(network.parts.convs, one.layers.tolist(), strict=True)) for one in before],
            coefficients=[{k: v if v.dim() else float(v) for k, v in one.items()} for one in coefficients],
            invalid_before=[dict(zip(PUBLISHED_THRESHOLDS, one.invalid, strict=True)) for one in before],
            invalid_after=[dict(zip(PUBLISHED_THRESHOLDS, counts, strict=True)) for counts in after],
            filters=sum(network.filters_by_name().values()),
            own=self._exchange.own[0] if isinstance(self._exchange, Ring) else None,
            whole_layer=network.pairs.unpaired if network.pairs is not None else {},
        )
        self._steps += 1
        return report

    def state_dict(self) -> dict[str, Any]:
        """Number of steps, the filters of each convolution (to recognize the networks) and the options; plain numbers
        and strings, the same on all ranks.
        """
        return {
            "format": _STATE_FORMAT,
            "steps": self._steps,
            "filters": self._networks[0].filters_by_name(),
            "options": asdict(self._rule),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True) -> None:
        """Go on where `state_dict` was taken; over a process group all ranks load it.

        Args:
            state: what that returned.
            strict: refuse a state that was saved with other options. False: go on with the options of this object.

        Raises:
            ValueError: the state is of another format or of other networks, or was saved with another option; names
                the first difference. Nothing is changed.
        """
        check_state(state, "FilterGrafting", (_STATE_FORMAT,), {"steps": int, "filters": dict, "options": dict})
        check_same_model(state["filters"], self._networks[0].filters_by_name(), "{} filters")
        if strict:
            check_same_options(state["options"], asdict(self._rule), "FilterGrafting", UNLESS_LENIENT)
        self._steps = int(state["steps"])

    def __repr__(self) -> str:
        return f"<FilterGrafting of {len(self._networks)} networks here, {self._steps} steps>"

    def _step_in_process(self) -> tuple[list[Information], list[tuple[int, ...]]]:
        for network in self._networks:
            network.look()
        _check_together(self._networks)
        banks = [network.bank() for network in self._networks]
        for i, network in enumerate(self._networks):
            _require_finite(network.first_bad(), f"network {i}")
        before = [network.information(self._rule) for network in self._networks]
        coefficients = _all_coefficients(self._networks[0], before, self._rule)
        vectors = [n.vector(c, bank) for n, c, bank in zip(self._networks, coefficients, banks, strict=True)]
        if len({bank.device for bank in banks}) == 1:
            wk.blend_ring_(banks, vectors, per=self._networks[0].per)
        else:
            self._blend_over_devices(banks, vectors)
        return before, [network.invalid() for network in self._networks]

    def _blend_over_devices(self, banks: Sequence[wk.FilterBank], vectors: Sequence[Tensor]) -> None:
        """Each network gets a copy of its neighbour on its own device; all are made before the first is blended."""
        received = []
        for i, bank in enumerate(banks):
            neighbour = self._networks[i - 1]
            received.append(neighbour.bank_of([p.tensor.to(bank.device, copy=True) for p in neighbour.parts.items]))
        for network, bank, other, vector in zip(self._networks, banks, received, vectors, strict=True):
            wk.blend_(bank, other, vector, per=network.per)

    def _make_with_others(self, models: Sequence[nn.Module], choice: Choice, exchange: Exchange) -> list[Network]:
        made: list[Network] = []

        def make() -> tuple[dict[str, object], list[int]]:
            made.extend(_make(models, choice))
            ranks = exchange.ranks_of(made, models)
            _check_together(made)
            return asdict(self._rule) | {"ranks_per_network": len(ranks), "models": len(models)}, ranks

        told = exchange.agree(make, "comparing options")
        for rank, (rule, _) in enumerate(told):
            if rule != told[0][0]:
                raise ValueError(f"rank {rank} has the options {rule}, rank 0 {told[0][0]}")
        exchange.arrange([ranks for _, ranks in told])
        _require_alike(exchange, made[0], exchange.agree(made[0].digest, "comparing networks"))
        return made

    def _step_with_others(self, exchange: Exchange) -> tuple[list[Information], list[tuple[int, ...]]]:
        networks = self._networks
        first = networks[0]

        def look() -> tuple[str, list[str | None]]:
            for network in networks:
                network.look()
                network.bank()  # refuses what the blend would
            _check_together(networks)
            return first.digest(), [network.first_bad() for network in networks]

        ranks = exchange.agree(look, "comparing networks")
        _require_alike(exchange, first, [digest for digest, _ in ranks])
        for rank, (_, found) in enumerate(ranks):
            for i, bad in enumerate(found):
                _require_finite(bad, f"rank {rank}" + (f", network {i}" if len(found) > 1 else ""))
        before = first.of_all(networks, exchange, self._rule)
        coefficients = _all_coefficients(first, before, self._rule)
        blended: list[dict[str, Tensor]] = []

        def blend() -> dict[int, tuple[int, ...]]:
            for network, values in zip(networks, exchange.blend(networks, coefficients), strict=True):
                blended.append(dict(zip((part.name for part in network.parts.items), values, strict=True)))
            counts = [network.invalid(new) for network, new in zip(networks, blended, strict=True)]
            return dict(zip(exchange.own, counts, strict=True))

        # Nobody writes before everybody has blended all.
        counts = exchange.agree(blend, "agreeing that all have blended")
        for network, new in zip(networks, blended, strict=True):
            for part in network.parts.items:
                part.write_(new[part.name])
        return before, first.total(exchange, counts)


def _make(models: Sequence[nn.Module], choice: Choice) -> list[Network]:
    """The networks of this process."""
    networks = [network_of(model, choice) for model in models]
    for network in networks:
        network.bank()  # to refuse what it refuses before the first epoch instead of after it
    return networks


def _all_coefficients(network: Network, before: Sequence[Information], rule: Rule) -> list[dict[str, Tensor]]:
    return [network.coefficients(one, before[i - 1], rule) for i, one in enumerate(before)]


def _require_finite(bad: str | None, where: str) -> None:
    if bad is not None:
        raise wk.NonFiniteWeightError(
            f"{where}: {bad} is NaN or infinite; nothing was changed in any "
            "network. Lower the learning rate or restore a checkpoint; a constant that is not finite can be left out "
            "with exclude="
        )


def _require_equal(descriptions: Sequence[Mapping[str, str]], what: str) -> None:
    for i, description in enumerate(descriptions):
        if difference := first_difference(description, descriptions[0]):
            raise ValueError(f"{what.format(i)} differs from {what.format(0)}: {difference}")


def _require_alike(exchange: Exchange, network: Network, digests: Sequence[str]) -> None:
    if len(set(digests)) > 1:
        _require_equal(exchange.agree(network.describe, "comparing networks"), "the network of rank {}")


def _check_together(networks: Sequence[Network]) -> None:
    """Networks must be alike; those that share memory would be blended with themselves, or twice."""
    _require_equal([network.describe() for network in networks], "models[{}]")
    parts = [(f"models[{i}].{part.name}", part.tensor) for i, each in enumerate(networks) for part in each.parts.items]
    if pair := find_overlap([tensor for _, tensor in parts]):
        first, second = (parts[i][0] for i in pair)
        raise ValueError(f"{second} shares memory with {first}; make each network of its own (copy.deepcopy)")


def _check_list(models: Sequence[nn.Module]) -> list[nn.Module]:
    if not isinstance(models, Sequence):
        raise TypeError(f"models must be a list of networks, or one with process_group, got {type(models).__name__}")
    if len(models) < 2:
        raise ValueError(f"models must hold at least 2 networks, got {len(models)}; for one per rank pass it alone")
    return list(models)
