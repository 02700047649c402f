"""`LowRankProjection`: one call per epoch, or every n iterations, then a compact network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import we_kernels as wk

from ..arguments import check_flag, check_inputs, check_positive, check_share
from ..model.batch_norm_pairs import BatchNormPairs
from ..model.copies import copy_model, copy_whole
from ..model.module_filters import ModuleChoice, ModuleFilter
from ..model.optimizer_state import StateUpdate, check_optimizer_state
from ..model.state import check_same_model, check_state, read_count
from ..model.tracing import restored
from ..model.wrappers import unwrap
from .compact import as_matrix, factorize, vanishes
from .comparison import compare
from .costs import count_macs, make_inputs
from .layers import FROZEN, Layer, Layers, Plain, one_device
from .ranks import PUBLISHED_PRUNE_RATIO, energies, ranks_for_budget, ranks_from_dict, ranks_from_ratio
from .rectification import Rectification
from .replicas import Replicas
from .report import VANISHES, CompactReport, Projected, ProjectionReport
from .sharded_layer import blank_basis
from .sharded_step import ShardedStep
from .shards import Shards

_STATE_FORMAT = 1


class LowRankProjection:
    """Keeps the weights of a model close to low rank while it trains, then gives the compact model.

    Call `step` after each epoch (or every few hundred iterations): it projects the weight matrix [N, C * kernel] of
    each conv onto the matrices of its rank, with the energy it had. After the last `step`, `compact` replaces each conv
    by two smaller ones that compute the same. Convs of 1, 2 and 3 dimensions take part, Linears with ``linear=True``.

    Source: Guo, Lin et al., "Compact Model Training by Low-Rank Projection with Energy Transfer", IEEE TNNLS 2024
    (arXiv 2204.05566).

    Args:
        model: the network; wrappers (torch.compile, DistributedDataParallel, activation checkpointing, ...) are seen
            through. Its parameters may later move between devices or be reloaded. In DistributedDataParallel making
            the projection and each `step` are collective: all ranks rectify with the first one's running variances and
            end with its weights, so pass the wrapped model. With DTensors sharded along dimension 0 (FSDP2's
            fully_shard; make the projection after it) `step`, `compact`, `compact_ranks`, `report` and ``budget`` are
            collective: docs/scaling.md.
        prune_ratio: in [0, 1): rank ``int(n - n * prune_ratio)``, at least 1, of n = min(N, C * kernel); or a list with
            one per layer (`layers`). 0.7 unless ranks are chosen otherwise.
        ranks: layer name -> rank; other layers stay as they are.
        budget: in (0, 1]: the compact model has at most this share of the model's multiply-accumulates, distributed
            by the energy kept in the weights as they are now. Needs ``input_size`` or ``example_inputs``.
        linear: Linears too.
        rectify_batch_norm: project what conv and BatchNorm compute together, for a conv whose output goes to a
            BatchNorm only.
        energy_transfer: scale the kept singular values so that the matrix keeps its energy.
        batch_norm_pairs: conv name -> BatchNorm name or None, where the traced graph should not decide.
        input_size: of one input, such as (3, 32, 32), for ``budget``.
        example_inputs: a tensor or a tuple of them, for ``budget``, and for torch.export where torch.fx cannot trace.
        include: only modules of these names (with all inside them), name patterns (``*``) or types.
        exclude: no modules of these names, patterns or types.
        optimizer: the one that trains the model, so that its state can change with the weights.
        optimizer_state: "keep" (as published), "fill" or "reset" the momentum and moments of projected weights, as in
            `WeightEvolution`.
        check_finite: raise when a weight is NaN or infinite. Such a step changes nothing, with or without the check.

    Raises:
        TypeError, ValueError: name the argument or layer and say what to do.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        prune_ratio: float | Sequence[float] | None = None,
        ranks: Mapping[str, int] | None = None,
        budget: float | None = None,
        linear: bool = False,
        rectify_batch_norm: bool = True,
        energy_transfer: bool = True,
        batch_norm_pairs: Mapping[str, str | None] | None = None,
        input_size: Sequence[int] | None = None,
        example_inputs: Tensor | tuple[Tensor, ...] | None = None,
        include: Sequence[ModuleFilter] | None = None,
        exclude: Sequence[ModuleFilter] = (),
        optimizer: Optimizer | None = None,
        optimizer_state: str = "keep",
        check_finite: bool = True,
    ) -> None:
        self._optimizer_state = check_optimizer_state(optimizer, optimizer_state)
        given = {"prune_ratio": prune_ratio, "ranks": ranks, "budget": budget}
        chosen = [name for name, value in given.items() if value is not None]
        if len(chosen) > 1:
            raise ValueError(f"ranks are chosen by one of prune_ratio, ranks and budget; got {' and '.join(chosen)}")
        self._example_inputs = check_inputs(example_inputs)
        self._layers = Layers(model, ModuleChoice(include, exclude), linear=check_flag(linear, "linear"))
        self._model = unwrap(model)
        self._replicas = Replicas.of(model)
        if self._optimizer_state is not None:
            self._optimizer_state.check_trains([layer.weight for layer in self._layers])
        self._energy_transfer = check_flag(energy_transfer, "energy_transfer")
        self._check_finite = check_flag(check_finite, "check_finite")
        self._rectification = Rectification(
            self._model,
            self._layers,
            self._replicas,
            rectify=rectify_batch_norm,
            given=batch_norm_pairs,
            example_inputs=self._example_inputs,
        )
        self._shards = Shards(model, self._layers, self._rectification) if self._layers.distributed else None
        self._sharded_step: ShardedStep | None = None
        if self._shards is not None:
            self._sharded_step = ShardedStep(
                self._shards,
                self._layers,
                energy_transfer=self._energy_transfer,
                optimizer_state=self._optimizer_state,
            )
        if ranks is not None:
            self._ranks = ranks_from_dict(self._layers.items, ranks, self._layers.unfit)
        elif budget is not None:
            self._ranks = self._ranks_for_budget(budget, input_size)
        else:
            ratio = PUBLISHED_PRUNE_RATIO if prune_ratio is None else prune_ratio
            self._ranks = ranks_from_ratio(self._layers.items, ratio)
        self._unranked = set() if ranks is None else {layer.name for layer in self._layers} - set(ranks)
        self._bases = wk.LowRankBases()
        self._steps = 0

    energy_transfer = property(attrgetter("_energy_transfer"), doc="Read-only, as all options are.")
    check_finite = property(attrgetter("_check_finite"))

    @property
    def steps(self) -> int:
        """Steps so far."""
        return self._steps

    @property
    def batch_norm_pairs(self) -> BatchNormPairs:
        """The BatchNorm behind each layer, or why there is none."""
        return self._rectification.pairs

    @property
    def layers(self) -> list[str]:
        """Names of the layers that can take part, in module order: the order of a list of ratios."""
        return [layer.name for layer in self._layers]

    @property
    def ranks(self) -> dict[str, int]:
        """Layer name -> rank, of the layers that `step` projects."""
        return {layer.name: rank for layer, rank in self._projected()}

    @property
    def skipped(self) -> dict[str, str]:
        """Layer name -> why `step` does not project it. A step adds the layers that vanish, in its report."""
        full = {
            layer.name: "no rank was given"
            if layer.name in self._unranked
            else f"rank {rank} is not smaller than min{(layer.rows, layer.columns)}"
            for layer, rank in zip(self._layers, self._ranks, strict=True)
            if rank >= layer.full_rank
        }
        return self._layers.unfit | full | dict.fromkeys(self._layers.frozen, FROZEN)

    @torch.no_grad()
    def step(self) -> ProjectionReport:
        """Project all layers, in place.

        It waits for a GPU, several times. A layer that was frozen since is left alone, a module that was replaced by
        its like is followed.

        Raises:
            NonFiniteWeightError: a weight or a BatchNorm is NaN or infinite; nothing was changed.
            ValueError: the model has changed in another way since the projection was made; says where.
            ExchangeError: with DTensors, another rank failed or did not answer; nothing was changed.
        """
        if self._sharded_step is None:
            done = self._project_here()
        else:
            done = self._sharded_step.run(self._taking_part, self._bases, self._steps)
        report = ProjectionReport(self._steps, done, self.batch_norm_pairs.names, self.skipped)
        if self._check_finite:
            report.check_finite()
        self._steps += 1
        return report

    def compact(self) -> nn.Module:
        """A new model in which two smaller layers stand for each projected one; the model itself is not touched.

        The two layers are the best approximation of that rank of the weights as they are now: exact right after
        `step`, a truncation when the weights were trained on since. A layer stays as it is where two would cost as
        many multiply-accumulates, or where it vanishes (`report` lists them). Forward hooks of a replaced layer are
        not carried over.

        Where parameters are DTensors it is collective, and every rank gets a whole model on the CPU, for which weights
        are gathered one by one; buffers are this rank's own, and hooks are left behind.

        Raises:
            NonFiniteWeightError: a weight is NaN or infinite.
            ExchangeError: with DTensors, another rank did not answer.
        """
        model, layers = self._whole()
        ranks, _ = self._replaced_and_kept(layers)
        return copy_model(
            model, {layer.module: factorize(layer, ranks[layer.name]) for layer in layers if layer.name in ranks}
        )

    @property
    def compact_ranks(self) -> dict[str, int]:
        """Layer name -> rank, of the layers that `compact` replaces now; save it for `compact_like`. As collective as
        `compact`.
        """
        return self._replaced_and_kept(self._whole()[1])[0]

    def report(
        self,
        input_size: Sequence[int] | None = None,
        *,
        latency: bool = False,
        min_run_time: float = 0.5,
    ) -> CompactReport:
        """Parameters and multiply-accumulates of the model and of its compact form, which are run once in eval mode.

        Where parameters are DTensors it is collective, and runs whole copies on the CPU.

        Args:
            input_size: such as (3, 32, 32), or with the batch in front; ``example_inputs`` of the constructor when left
                out.
            latency: also measure how long one forward takes, each for ``min_run_time`` seconds.
        """
        model, layers = self._whole()
        inputs = make_inputs(model, input_size, self._example_inputs)
        ranks, kept = self._replaced_and_kept(layers)
        names = [layer.name for layer in self._layers] + list(self._layers.unfit)
        seconds = check_positive(min_run_time, "min_run_time") if latency else None
        return compare(model, ranks, names, kept, inputs, min_run_time=seconds)

    def state_dict(self) -> dict[str, Any]:
        """Number of steps, ranks, the layers' shapes (to recognize the model) and the bases that a projection starts
        from (zeros before the first); plain numbers, strings and tensors, with DTensors the same on every rank.
        """
        chosen = [(layer, rank) for layer, rank in self._projected() if layer.name not in self._layers.frozen]
        known = self._bases.tensors
        blank = {str(i): blank_basis(layer, rank) for i, (layer, rank) in enumerate(chosen) if i not in known}
        return {
            "format": _STATE_FORMAT,
            "steps": self._steps,
            "shapes": {layer.name: list(layer.shape) for layer in self._layers},
            "ranks": {layer.name: rank for layer, rank in zip(self._layers, self._ranks, strict=True)},
            "bases": blank | {position: basis.clone() for position, basis in self._bases.state_dict().items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume where `state_dict` was taken, with its ranks.

        Raises:
            ValueError: the state is of another format or another model, or the model has changed since the projection
                was made; names the first difference. Nothing is changed.
        """
        entries = {"steps": int, "shapes": dict, "ranks": dict, "bases": dict}
        check_state(state, "LowRankProjection", (_STATE_FORMAT,), entries)
        self._layers.look()
        own = {layer.name: list(layer.shape) for layer in self._layers}
        check_same_model(state["shapes"], own, "shape {}")
        if set(state["ranks"]) != set(own):
            raise ValueError("state['ranks'] must have a rank for each of state['shapes']")
        ranks = {name: read_count(rank, f"state['ranks'][{name!r}]") for name, rank in state["ranks"].items()}
        new_ranks = ranks_from_dict(self._layers.items, ranks, self._layers.unfit)
        bases = state["bases"]
        if not all(isinstance(basis, Tensor) for basis in bases.values()):
            raise ValueError("state['bases'] must be a dict of tensors")
        device = one_device(self._layers.items)
        new_bases = wk.LowRankBases()
        try:
            new_bases.load_state_dict({position: basis.to(device) for position, basis in bases.items()})
        except ValueError as error:
            raise ValueError(f"state['bases'] is not a LowRankBases state_dict ({error})") from None
        self._ranks, self._bases, self._steps = new_ranks, new_bases, int(state["steps"])
        self._unranked &= {name for name in own if ranks[name] >= _full_rank(own[name])}

    def __repr__(self) -> str:
        return f"<LowRankProjection of {len(self._projected())} layers, {self._steps} steps>"

    def _projected(self) -> list[tuple[Layer, int]]:
        return [(layer, rank) for layer, rank in zip(self._layers, self._ranks, strict=True) if rank < layer.full_rank]

    def _taking_part(self) -> list[tuple[Layer, int]]:
        """What a step projects, after a look at the model."""
        self._layers.look()
        return [(layer, rank) for layer, rank in self._projected() if layer.name not in self._layers.frozen]

    def _project_here(self) -> Projected:
        """A step where every rank has all of the weights."""
        chosen = self._taking_part()
        layers, ranks = [layer for layer, _ in chosen], [rank for _, rank in chosen]
        if not layers:
            return Projected(layers, ranks, None)
        weights = [layer.weight for layer in layers]
        one_device(layers)
        state = None if self._optimizer_state is None else StateUpdate(self._optimizer_state, weights)
        result = wk.project_low_rank_(
            weights,
            ranks,
            self._rectification.scales(layers, of_first_rank=True),
            bases=self._bases,
            energy_transfer=self._energy_transfer,
        )
        if self._replicas is not None:  # also where libraries or numbers of threads differ
            self._replicas.take_(weights)
        if state is not None:
            state.apply_()
        return Projected(layers, ranks, result)

    def _whole(self) -> tuple[nn.Module, list[Layer]]:
        """The model and its layers as they are now; where parameters are DTensors, of a whole copy on the CPU."""
        self._layers.look()
        if self._shards is None:
            return self._model, self._layers.items
        model = copy_whole(self._model)
        modules = dict(model.named_modules())
        return model, [Layer(layer.name, cast(Plain, modules[layer.name])) for layer in self._layers]

    def _scales(self, layers: Sequence[Layer], *, of_first_rank: bool = False) -> list[Tensor | None]:
        if self._shards is None:
            return self._rectification.scales(layers, of_first_rank=of_first_rank)
        scales = self._shards.scales("row scales")
        return [scales.get(layer.name) for layer in layers]

    def _ranks_for_budget(self, budget: float, input_size: Sequence[int] | None) -> list[int]:
        check_share(budget, "budget")
        model, layers = self._whole()
        inputs = make_inputs(model, input_size, self._example_inputs)
        with restored():
            plain = copy_model(model)  # since forward may change what it runs on
            own = dict(plain.named_modules())
            total, macs = count_macs(plain, inputs, [own[layer.name] for layer in layers])
        spectra = []
        for layer, scale in zip(layers, self._scales(layers, of_first_rank=True), strict=True):
            _require_finite(layer, scale)
            spectra.append(energies(as_matrix(layer.weight, scale)))
        ranks = ranks_for_budget(layers, spectra, macs, total, budget)
        several = self._shards or self._replicas
        return ranks if several is None else several.ranks_of_first(ranks)

    def _replaced_and_kept(self, layers: Sequence[Layer]) -> tuple[dict[str, int], dict[str, str]]:
        """Layer name -> rank, of the layers that `compact` replaces; and of the others, why not."""
        replaced, kept = dict[str, int](), self.skipped
        projected = [(layer, rank) for layer, rank in zip(layers, self._ranks, strict=True) if rank < layer.full_rank]
        scales = self._scales([layer for layer, _ in projected])
        for (layer, rank), scale in zip(projected, scales, strict=True):
            _require_finite(layer, scale)
            if not layer.saves(rank):
                kept[layer.name] = f"two layers of rank {rank} would not cost less"
            elif vanishes(as_matrix(layer.weight, scale)):
                kept[layer.name] = VANISHES
            else:
                replaced[layer.name] = rank
                kept.pop(layer.name, None)  # frozen since
        return replaced, kept


def _require_finite(layer: Layer, scale: Tensor | None) -> None:
    if not bool(layer.weight.isfinite().all()):
        raise wk.NonFiniteWeightError(f"{layer.name}.weight is NaN or infinite; restore a checkpoint")
    if scale is not None and not bool(scale.isfinite().all()):
        raise wk.NonFiniteWeightError(f"the BatchNorm behind {layer.name} is NaN or infinite; restore a checkpoint")


def _full_rank(shape: Sequence[int]) -> int:
    return min(shape[0], torch.Size(shape[1:]).numel())
