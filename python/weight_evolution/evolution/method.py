"""`WeightEvolution`: one call after each epoch."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from ..arguments import check_count, check_flag
from ..model.module_filters import ModuleChoice, ModuleFilter
from ..model.optimizer_state import check_optimizer_state
from ..model.state import UNLESS_LENIENT, check_same_model, check_same_options, check_state, read_count
from .device_step import Outcome
from .options import EvolutionOptions, Importance
from .report import EvolutionReport
from .schedule import Schedule, StagedSigmoid
from .sharded_step import step_for
from .taking_part import TakingPart

_STATE_FORMAT = 2
_PUBLISHED = EvolutionOptions()
_LITTLE = 0.05
"""Share of a model's trainable elements under which a warning says how little takes part."""


class WeightEvolution:
    """Evolves the inferior filters of a model by crossover with dominant filters of their layer.

    Call `step` after each epoch but the last, when the epoch's accuracy has been measured: the network that remains is
    then one that was measured (``epochs`` sees to it). All trainable weights of convolutions (1d, 2d, 3d, transposed)
    and the scales and shifts of BatchNorms (SyncBatchNorm too) take part, in module order; rows of Linears when
    ``linear_rate > 0``. Running statistics and convolution biases are not touched. Left out, with the reason in
    `skipped`: convolutions and Linears whose output is the network's (where torch.fx can trace it on a copy), adapters
    (LoRA), computed weights (weight_norm, prune), subclasses that do something else with their weight (weight
    standardisation), and parameters that are frozen or not trained by ``optimizer``.

    The published step also replaces the smallest BatchNorm shifts of the network, and small shifts are no sign of an
    inferior channel: on three healthy networks it changed no convolution, one scale and 5 to 11 shifts, and moved the
    test accuracy by up to 2.7 points; without shifts by 0.1. Called every 20 iterations it cost 0.66 +- 0.55 points
    (8 seeds), with ``norm_shift_rate=0`` nothing.

    Source: Lin et al., "Weight Evolution: Improving Deep Neural Networks Training through Evolving Inferior Weight
    Values", ACM MM 2021 (arXiv 2110.04492).

    Args:
        model: the network; its parameters may later move between devices or be reloaded.
        conv_rate, norm_scale_rate, norm_shift_rate, linear_rate: base rates in [0, 1]: the share of all filters (or
            elements) of that kind in the network that may be inferior. 0 turns Linears off.
            norm_shift_rate may also be "inferior": the published rate, but only shifts of channels whose filter is
            inferior and gets a donor in the same step; the model must be traceable by torch.fx.
        local_ratio: in [0, 1]; an inferior filter's importance is at most this share of its layer's largest.
        starvation_divisor: positive; after (number of convolutions) / starvation_divisor layers in a row with globally
            but no locally inferior filters, the layer at hand gives up one. None: never.
        schedule: ``(base_rate, epoch) -> rate``; `StagedSigmoid.cifar()` when left out, which is for 200 epochs
            (``StagedSigmoid.cifar(epochs=90)`` for 90). Stages that ``epochs`` never reaches are warned of.
        crossover: "paper" or "released", see `we_kernels.crossover_`. With "paper", a filter of zeros is globally
            inferior even where more than the rate's share of them is zero; the released program leaves them.
        importance: "l1", the L1 norm over the number of kernels (`we_kernels.filter_importance`), or a callable
            ``(bank) -> float32 [F]`` on the weights' device, not negative. It decides which filters are inferior and
            which replace them, also in `preview` and in the report; blends of rows still weigh by L1 norm. A weight
            that is not finite, or an importance that is negative or not finite, stops the step all the same. The
            callable may not wait for the device if steps should not, and must be capturable with ``cuda_graph``.
        check_finite: raise when a weight is NaN or infinite. Such a step changes nothing, with or without the check,
            which costs no pass over the weights: their importances tell.
        include: only modules of these names (with all inside them), name patterns (``*``) or types; output layers and
            adapters, too, that are left out otherwise (``["*"]``: everything).
        exclude: no modules of these names, patterns or types.
        optimizer: the one that trains the model: parameters that it does not train are left out, and its state can
            change with the weights.
        optimizer_state: what becomes of the momentum and moments of replaced elements: "fill" (momentum 0, second
            moments the mean of the tensor's other elements), "keep" (as published) or "reset" (all 0, as a fresh
            parameter has them; under Adam the next steps of these elements are then several times too large, since the
            step counter goes on). None: "fill" with an ``optimizer``, but "keep" with ``cuda_graph``. State that is a
            copy of the weight (float32 masters, slow weights) follows it if there is an ``optimizer``;
            `OptimizerState` says what is seen. Holds a copy of the weights during the step where there is state to
            change.
        measure_after: also measure the importances after the step, for `EvolutionReport.plot`; one more read of the
            weights.
        cuda_graph: replay the step as one CUDA graph while the model is on a GPU, with the same results: for a step so
            frequent that the host's time per launch counts. The first step runs as ever, the second is recorded (and
            waits for the device), both again after parameters moved. Only with ``optimizer_state="keep"``, which
            then leaves all state as it is.
        epochs: of the whole training; the step after the last of them (and any later one) does nothing. None: unknown.

    Parameters that are DTensors sharded along their filters (FSDP2) evolve as in one process that has all of them;
    those sharded along their input channels (row-wise tensor parallelism) do so up to the rounding of norms, which are
    sums over the ranks. Make this after ``fully_shard`` or ``parallelize_module``, with the same options on all ranks,
    and call `step` and `preview` on all ranks. They then wait for the other ranks and the device; a callable
    ``importance`` gets the bank of this rank's filters, which must be whole, and ``cuda_graph`` is not possible
    (docs/scaling.md).

    A deep or pickled copy of (model, evolution), together, works on the copied model.

    Raises:
        TypeError, ValueError: name the argument or parameter and say what to do.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        conv_rate: float = _PUBLISHED.conv_rate,
        norm_scale_rate: float = _PUBLISHED.norm_scale_rate,
        norm_shift_rate: float | str = _PUBLISHED.norm_shift_rate,
        linear_rate: float = _PUBLISHED.linear_rate,
        local_ratio: float = _PUBLISHED.local_ratio,
        starvation_divisor: float | None = _PUBLISHED.starvation_divisor,
        schedule: Schedule | None = None,
        crossover: str = _PUBLISHED.crossover,
        importance: str | Importance = _PUBLISHED.importance,
        check_finite: bool = True,
        include: Sequence[ModuleFilter] | None = None,
        exclude: Sequence[ModuleFilter] = (),
        optimizer: Optimizer | None = None,
        optimizer_state: str | None = None,
        measure_after: bool = True,
        cuda_graph: bool = False,
        epochs: int | None = None,
    ) -> None:
        schedule = _PUBLISHED.schedule if schedule is None else schedule
        self._options = EvolutionOptions.of(locals())
        if optimizer_state is None:
            optimizer_state = "keep" if optimizer is None or cuda_graph else "fill"
        state = check_optimizer_state(optimizer, optimizer_state)
        if cuda_graph and optimizer_state != "keep":
            raise ValueError('cuda_graph=True needs optimizer_state="keep": a graph would write to outdated state')
        self._taking_part = TakingPart(
            model,
            self._options,
            ModuleChoice(include, exclude),
            optimizer=optimizer,
            make_step=partial(
                step_for,
                options=self._options,
                measure_after=check_flag(measure_after, "measure_after"),
                optimizer_state=None if cuda_graph else state,
                cuda_graph=check_flag(cuda_graph, "cuda_graph"),
            ),
        )
        self._epoch = self._steps = 0
        self._last_step: int | None = None
        self._warned = False
        self._warn_of_stages()
        self._unchecked: deque[EvolutionReport] = deque()
        if include is None and not exclude:
            self._warn_of_little(model)

    base_rates = property(attrgetter("_options.base_rates"), doc="Kind -> base rate; read-only, as all options are.")
    local_ratio = property(attrgetter("_options.local_ratio"))
    starvation_divisor = property(attrgetter("_options.starvation_divisor"))
    schedule = property(attrgetter("_options.schedule"))
    crossover = property(attrgetter("_options.crossover"))
    importance = property(attrgetter("_options.importance"))
    check_finite = property(attrgetter("_options.check_finite"))
    epochs = property(attrgetter("_options.epochs"))

    @property
    def epoch(self) -> int:
        """The epoch that the next `step` counts as, from 0."""
        return self._epoch

    @property
    def steps(self) -> int:
        """Steps so far, without those after the last of ``epochs``."""
        return self._steps

    @property
    def skipped(self) -> dict[str, str]:
        """Parameters of convolutions, BatchNorms (and Linears, if asked) that do not take part, and why."""
        return dict(self._taking_part.targets.skipped)

    @torch.no_grad()
    def step(self, epoch: int | None = None) -> EvolutionReport | None:
        """One evolution of the whole model; after the last of ``epochs`` none, and None is returned.

        A model that changed since the last call is taken as it is now: layers that were replaced or added take part,
        frozen parameters do not.

        On a GPU it returns without waiting for the device, as long as the parameters stay where they are. The report
        waits when it is read. With ``check_finite``, a weight that is not finite then raises once: when the report is
        first read, or at the next step that finds the device through with this one, whichever comes first; that next
        step is not done.

        Args:
            epoch: the epoch just trained, from 0; one more than last time when left out.

        Raises:
            TypeError: a weight that took part is computed from other parameters now (prune, parametrize), or what the
                schedule or ``importance`` gave is of the wrong type.
            ValueError: the schedule gave a rate outside [0, 1], or ``epoch`` is negative, or the parameters are on
                several devices, or a weight is only a part of its layer's (a shard).
            NonFiniteWeightError: a weight is NaN or infinite (on a GPU: was at an earlier step); nothing was changed.
            RuntimeError: called while a CUDA graph is captured (see ``cuda_graph``).
            ExchangeError: of sharded parameters, another rank failed; nothing was changed.
        """
        while self._unchecked and self._unchecked[0].arrived:
            self._unchecked.popleft().raise_pending()
        epoch = self._check_epoch(epoch)
        epochs = self._options.epochs
        if epochs is not None and epoch >= epochs - 1:
            self._epoch = epoch + 1
            return None
        self._taking_part.follow()
        rates = self._options.rates(self._taking_part.targets.kinds, epoch)
        self._warn_of_shifts(epoch)
        report = self._report(epoch, rates, self._taking_part.device_step.run(list(rates.values())))
        if report.pending:
            self._unchecked.append(report)
        self._epoch, self._last_step = epoch + 1, epoch
        self._steps += 1
        return report

    @torch.no_grad()
    def preview(self, epoch: int | None = None) -> EvolutionReport:
        """What `step` would select now; changes neither the model nor the counters. Waits as little as `step`."""
        epoch = self._check_epoch(epoch)
        self._taking_part.follow()
        rates = self._options.rates(self._taking_part.targets.kinds, epoch)
        return self._report(epoch, rates, self._taking_part.device_step.preview(list(rates.values())))

    def state_dict(self) -> dict[str, Any]:
        """Next epoch, number of steps, starvation counters, the model's filters (to recognize it) and the options that
        change results; plain numbers and strings.
        """
        self._taking_part.follow()
        targets, counters = self._taking_part.targets, self._taking_part.device_step.counters
        return {
            "format": _STATE_FORMAT,
            "epoch": self._epoch,
            "steps": self._steps,
            "starvation": dict(zip(targets.kinds, counters, strict=True)),
            "filters": targets.filter_counts,
            "options": self._options.to_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True) -> None:
        """Resume where `state_dict` was taken.

        Args:
            state: what that returned.
            strict: refuse a state that was saved with other options (rates, ratio, schedule, crossover, importance).
                False: go on with the options of this object, as when a run is extended. A function is known by its
                name only. ``epochs`` is not compared.

        Raises:
            ValueError: the state is of another format or another model, or was saved with another option; names the
                first difference. Nothing is changed.
        """
        entries = {"epoch": int, "starvation": dict, "filters": dict}
        check_state(state, "WeightEvolution", (1, _STATE_FORMAT), entries)
        if state["format"] != 1:  # which was without options
            check_state(state, "WeightEvolution", (_STATE_FORMAT,), {"options": dict})
            if strict:
                check_same_options(state["options"], self._options.to_dict(), "WeightEvolution", UNLESS_LENIENT)
        self._taking_part.follow()
        check_same_model(state["filters"], self._taking_part.targets.filter_counts, "{} filters")
        starvation = state["starvation"]
        if list(starvation) != self._taking_part.targets.kinds:
            raise ValueError(
                f"state counts starvation of {list(starvation)}, this model of {self._taking_part.targets.kinds}"
            )
        counters = [read_count(value, f"state['starvation'][{kind!r}]") for kind, value in starvation.items()]
        # States of earlier versions do not count steps, which mostly come once an epoch.
        self._steps = read_count(state.get("steps", state["epoch"]), "state['steps']")
        self._epoch = int(state["epoch"])
        self._taking_part.device_step.counters = counters
        self._last_step = None
        self._unchecked.clear()

    def __getstate__(self) -> dict[str, Any]:
        # Errors that are still to come are of the original's weights.
        return {**self.__dict__, "_unchecked": deque()}

    def __repr__(self) -> str:
        return f"<WeightEvolution of {len(self._taking_part.targets.items)} parameters, {self._steps} steps>"

    def _warn_of_little(self, model: nn.Module) -> None:
        """Once, when made: a model of which next to nothing takes part is not what the method is for."""
        items = self._taking_part.targets.items
        taking = sum(target.parameter.numel() for target in items)
        every = sum(p.numel() for p in model.parameters() if p.requires_grad and not is_lazy(p))
        if taking < _LITTLE * every:
            warnings.warn(
                f"only {len(items)} parameters with {taking / every:.2%} of the model's trainable "
                "elements take part in the evolution: convolutions and BatchNorms; for Linears pass linear_rate=, or "
                "name what you want in include=",
                stacklevel=3,
            )

    def _warn_of_stages(self) -> None:
        """Once, when made: stages of the schedule that a run of that length never reaches."""
        schedule, epochs = self._options.schedule, self._options.epochs
        if epochs is None or not isinstance(schedule, StagedSigmoid):
            return
        if beyond := schedule.beyond(epochs):
            warnings.warn(
                f"the schedule's stages from epoch {beyond[0]} on are never reached in epochs={epochs}; pass "
                f"schedule=StagedSigmoid.cifar(epochs={epochs}) or another that fits the run",
                stacklevel=3,
            )

    def _warn_of_shifts(self, epoch: int) -> None:
        """Once: a second step for an epoch, when shifts of any channel take part."""
        if epoch != self._last_step or self._warned or self._options.only_inferior_shifts:
            return
        if self._options.base_rates["norm_shift"] > 0 and "norm_shift" in self._taking_part.targets.kinds:
            self._warned = True
            warnings.warn(
                f"a second step for epoch {epoch}: each step replaces BatchNorm shifts of healthy channels, too, which "
                'costs accuracy when steps are frequent; pass norm_shift_rate="inferior" or 0',
                stacklevel=4,
            )

    def _check_epoch(self, epoch: int | None) -> int:
        return self._epoch if epoch is None else check_count(epoch, "epoch")

    def _report(self, epoch: int, rates: dict[str, float], outcome: Outcome) -> EvolutionReport:
        kinds = {target.name: target.kind for target in self._taking_part.targets.items}
        report = EvolutionReport(
            epoch,
            self._options.crossover,
            rates,
            # Parameters that share their memory are one of the bank's.
            [kinds[name] for name in outcome.names],
            outcome,
            self._options.check_finite,
            self._options.local_ratio,
        )
        if outcome.counters.device.type == "cpu":
            report.raise_pending()
        return report
