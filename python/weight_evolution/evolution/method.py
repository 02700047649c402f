"""`WeightEvolution`: one call after each epoch."""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from we_kernels.checks import check_rule, is_integer, is_number

from ..model.module_filters import ModuleFilter
from ..model.optimizer_state import check_optimizer_state
from ..model.parameters import COMPUTED, candidates, find_targets
from ..model.structure import Structure
from ..model.targets import Targets
from .device_step import DeviceStep, Outcome
from .inferior_shifts import InferiorShifts
from .report import EvolutionReport
from .schedule import Schedule, StagedSigmoid, describe

_STATE_FORMAT = 2
_PUBLISHED_SHIFT_RATE = 0.05
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
            but no locally inferior filters, the layer at hand gives up one.
        schedule: ``(base_rate, epoch) -> rate``; `StagedSigmoid.cifar()` when left out.
        crossover: "paper" or "released", see `we_kernels.crossover_`. With "paper", a filter of zeros is globally
            inferior even where more than the rate's share of them is zero; the released program leaves them.
        check_finite: raise when a weight is NaN or infinite. Such a step changes nothing, with or without the check,
            which costs no pass over the weights: their importances tell.
        include: only modules of these names (with all inside them), name patterns (``*``) or types; output layers and
            adapters, too, that are left out otherwise (``["*"]``: everything).
        exclude: no modules of these names, patterns or types.
        optimizer: the one that trains the model: parameters that it does not train are left out, and its state can
            change with the weights.
        optimizer_state: what becomes of the momentum and moments of replaced elements: "keep" (as published), "fill"
            (momentum 0, second moments the mean of the tensor's other elements) or "reset" (all 0, as a fresh parameter
            has them; under Adam the next steps of these elements are then several times too large, since the step
            counter goes on). State that is a copy of the weight (float32 masters, slow weights) follows it if there is
            an ``optimizer``; `OptimizerState` says what is seen. Holds a copy of the weights during the step where
            there is state to change.
        measure_after: also measure the importances after the step, for `EvolutionReport.plot`; one more read of the
            weights.
        cuda_graph: replay the step as one CUDA graph while the model is on a GPU, with the same results: for a step so
            frequent that the host's time per launch counts. The first step runs as ever, the second is recorded (and
            waits for the device), both again after parameters moved. Only with ``optimizer_state="keep"``, which
            then leaves all state as it is.
        epochs: of the whole training; the step after the last of them (and any later one) does nothing. None: unknown.

    A deep or pickled copy of (model, evolution), together, works on the copied model.

    Raises:
        TypeError, ValueError: name the argument or parameter and say what to do.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        conv_rate: float = 0.2,
        norm_scale_rate: float = 0.05,
        norm_shift_rate: float | str = _PUBLISHED_SHIFT_RATE,
        linear_rate: float = 0.0,
        local_ratio: float = 0.1,
        starvation_divisor: float = 2.0,
        schedule: Schedule | None = None,
        crossover: str = "paper",
        check_finite: bool = True,
        include: Sequence[ModuleFilter] | None = None,
        exclude: Sequence[ModuleFilter] = (),
        optimizer: Optimizer | None = None,
        optimizer_state: str = "keep",
        measure_after: bool = True,
        cuda_graph: bool = False,
        epochs: int | None = None,
    ) -> None:
        self._only_inferior_shifts = norm_shift_rate == "inferior"
        shift_rate = _PUBLISHED_SHIFT_RATE if norm_shift_rate == "inferior" else norm_shift_rate
        self.base_rates = {
            "conv": _check_fraction(conv_rate, "conv_rate"),
            "norm_scale": _check_fraction(norm_scale_rate, "norm_scale_rate"),
            "norm_shift": _check_fraction(shift_rate, 'norm_shift_rate (or "inferior")'),
            "linear": _check_fraction(linear_rate, "linear_rate"),
        }
        self.local_ratio = _check_fraction(local_ratio, "local_ratio")
        if not is_number(starvation_divisor) or not 0 < float(starvation_divisor) < math.inf:
            raise ValueError(f"starvation_divisor must be a positive number, got {starvation_divisor!r}")
        self.starvation_divisor = float(starvation_divisor)
        state = check_optimizer_state(optimizer, optimizer_state)
        if schedule is not None and not callable(schedule):
            raise TypeError(f"schedule must be a callable (base_rate, epoch) -> rate, got {type(schedule).__name__}")
        self.schedule: Schedule = StagedSigmoid.cifar() if schedule is None else schedule
        self.crossover = check_rule(crossover, "crossover")
        self.check_finite = check_finite
        self.epochs = None if epochs is None else _check_count(epochs, "epochs", at_least=1)
        if cuda_graph and optimizer_state != "keep":
            raise ValueError('cuda_graph=True needs optimizer_state="keep": a graph would write to outdated state')
        self._optimizer_state = None if cuda_graph else state
        self._measure_after, self._cuda_graph = measure_after, cuda_graph
        self._model, self._optimizer = model, optimizer
        self._include, self._exclude = include, exclude
        self._epoch = 0
        self._last_step: int | None = None
        self._warned = False
        self._unchecked: deque[EvolutionReport] = deque()
        self._linear = linear_rate > 0
        self._targets = self._find()
        self._device_step = self._step_of(self._targets)
        self._structure = self._structure_now()
        if not any(target.parameter.is_meta for target in self._targets.items):
            self._targets.bank()
        if include is None and not exclude:
            self._warn_of_little()

    @property
    def epoch(self) -> int:
        """The epoch that the next `step` counts as, from 0."""
        return self._epoch

    @property
    def skipped(self) -> dict[str, str]:
        """Parameters of convolutions, BatchNorms (and Linears, if asked) that do not take part, and why."""
        return dict(self._targets.skipped)

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
            TypeError: a weight that took part is computed from other parameters now (prune, parametrize).
            ValueError: the schedule gave a rate outside [0, 1], or ``epoch`` is negative, or the parameters are on
                several devices, or a weight is only a part of its layer's (a shard).
            NonFiniteWeightError: a weight is NaN or infinite (on a GPU: was at an earlier step); nothing was changed.
            RuntimeError: called while a CUDA graph is captured (see ``cuda_graph``).
        """
        while self._unchecked and self._unchecked[0].arrived:
            self._unchecked.popleft().raise_pending()
        epoch = self._check_epoch(epoch)
        if self.epochs is not None and epoch >= self.epochs - 1:
            self._epoch = epoch + 1
            return None
        self._follow()
        rates = self._rates(epoch)
        self._warn_of_shifts(epoch)
        report = self._report(epoch, rates, self._device_step.run(list(rates.values())))
        if report.pending:
            self._unchecked.append(report)
        self._epoch, self._last_step = epoch + 1, epoch
        return report

    @torch.no_grad()
    def preview(self, epoch: int | None = None) -> EvolutionReport:
        """What `step` would select now; changes neither the model nor the counters. Waits as little as `step`."""
        epoch = self._check_epoch(epoch)
        self._follow()
        rates = self._rates(epoch)
        return self._report(epoch, rates, self._device_step.preview(list(rates.values())))

    def state_dict(self) -> dict[str, Any]:
        """Next epoch, starvation counters, the model's filters (to recognize it) and the options that change results;
        plain numbers and strings.
        """
        self._follow()
        bank = self._targets.bank()
        return {
            "format": _STATE_FORMAT,
            "epoch": self._epoch,
            "starvation": dict(zip(self._targets.kinds, self._device_step.counters, strict=True)),
            "filters": dict(zip(bank.names, bank.sizes, strict=True)),
            "options": self._options(),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True) -> None:
        """Resume where `state_dict` was taken.

        Args:
            state: what that returned.
            strict: refuse a state that was saved with other options (rates, ratio, schedule, crossover). False: go on
                with the options of this object, as when a run is extended. A schedule that is a function is known by
                its name only. ``epochs`` is not compared.

        Raises:
            ValueError: the state is of another format or another model, or was saved with another option; names the
                first difference. Nothing is changed.
        """
        try:
            version, epoch = state["format"], state["epoch"]
            starvation, filters = dict(state["starvation"]), dict(state["filters"])
            options = dict(state["options"]) if version != 1 else {}  # format 1 was without options
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"state is not a WeightEvolution state_dict ({error!r})") from None
        if version not in (1, _STATE_FORMAT):
            raise ValueError(f"state has format {version}, this version reads 1 and {_STATE_FORMAT}")
        self._follow()
        bank = self._targets.bank()
        own = dict(zip(bank.names, bank.sizes, strict=True))
        for name in [*own, *filters]:
            if own.get(name) != filters.get(name):
                raise ValueError(
                    f"state is of another model: {name} has {_filters(filters.get(name))} there "
                    f"and {_filters(own.get(name))} here"
                )
        for name, here in self._options().items():
            if strict and name in options and options[name] != here:
                raise ValueError(
                    f"state was saved with {name}={options[name]!r}, this WeightEvolution has {here!r}; make it with "
                    "the same options, or pass load_state_dict(state, strict=False) to go on with these"
                )
        if list(starvation) != self._targets.kinds:
            raise ValueError(f"state counts starvation of {list(starvation)}, this model of {self._targets.kinds}")
        counters = [_check_count(value, f"state['starvation'][{kind!r}]") for kind, value in starvation.items()]
        self._epoch = _check_count(epoch, "state['epoch']")
        self._device_step.counters = counters
        self._last_step = None
        self._unchecked.clear()

    def __getstate__(self) -> dict[str, Any]:
        # Errors that are still to come are of the original's weights.
        return {**self.__dict__, "_unchecked": deque()}

    def _options(self) -> dict[str, Any]:
        rates = {f"{kind}_rate": rate for kind, rate in self.base_rates.items()}
        if self._only_inferior_shifts:
            rates["norm_shift_rate"] = "inferior"  # type: ignore[assignment]
        return {
            **rates,
            "local_ratio": self.local_ratio,
            "starvation_divisor": self.starvation_divisor,
            "crossover": self.crossover,
            "schedule": describe(self.schedule),
        }

    def _find(self) -> Targets:
        return find_targets(
            self._model, linear=self._linear, include=self._include, exclude=self._exclude, optimizer=self._optimizer
        )

    def _step_of(self, targets: Targets) -> DeviceStep:
        convs = sum(target.kind == "conv" for target in targets.items)
        return DeviceStep(
            targets,
            local_ratio=self.local_ratio,
            crossover=self.crossover,
            # Without a convolution no filter can starve, but BatchNorms alone still need a limit.
            starvation_limit=max(convs, 1) / self.starvation_divisor,
            measure_after=self._measure_after,
            optimizer_state=self._optimizer_state,
            inferior_shifts=InferiorShifts(self._model, targets) if self._only_inferior_shifts else None,
            cuda_graph=self._cuda_graph,
        )

    def _structure_now(self) -> Structure:
        return Structure(self._model, candidates(self._model, self._linear), self._optimizer)

    def _follow(self) -> None:
        """Where the model changed, find anew what takes part; counters carry over."""
        if self._structure.holds():
            return
        targets = self._find()
        for target in self._targets.items:
            if targets.skipped.get(target.name) == COMPUTED:
                raise TypeError(f"{target.name} is now {COMPUTED}; undo that or make a new WeightEvolution")
        device_step = self._step_of(targets)
        counters = dict(zip(self._targets.kinds, self._device_step.counters, strict=True))
        device_step.counters = [counters.get(kind, 0) for kind in targets.kinds]
        self._targets, self._device_step, self._structure = targets, device_step, self._structure_now()

    def _warn_of_little(self) -> None:
        """Once, when made: a model of which next to nothing takes part is not what the method is for."""
        taking = sum(target.parameter.numel() for target in self._targets.items)
        every = sum(p.numel() for p in self._model.parameters() if p.requires_grad and not is_lazy(p))
        if taking < _LITTLE * every:
            warnings.warn(
                f"only {len(self._targets.items)} parameters with {taking / every:.2%} of the model's trainable "
                "elements take part in the evolution: convolutions and BatchNorms; for Linears pass linear_rate=, or "
                "name what you want in include=",
                stacklevel=3,
            )

    def _warn_of_shifts(self, epoch: int) -> None:
        """Once: a second step for an epoch, when shifts of any channel take part."""
        if epoch != self._last_step or self._warned or self._only_inferior_shifts:
            return
        if self.base_rates["norm_shift"] > 0 and "norm_shift" in self._targets.kinds:
            self._warned = True
            warnings.warn(
                f"a second step for epoch {epoch}: each step replaces BatchNorm shifts of healthy channels, too, which "
                'costs accuracy when steps are frequent; pass norm_shift_rate="inferior" or 0',
                stacklevel=4,
            )

    def _check_epoch(self, epoch: int | None) -> int:
        return self._epoch if epoch is None else _check_count(epoch, "epoch")

    def _rates(self, epoch: int) -> dict[str, float]:
        return {
            kind: _check_fraction(self.schedule(self.base_rates[kind], epoch), f"schedule({kind} rate, epoch {epoch})")
            for kind in self._targets.kinds
        }

    def _report(self, epoch: int, rates: dict[str, float], outcome: Outcome) -> EvolutionReport:
        kinds = {target.name: target.kind for target in self._targets.items}
        report = EvolutionReport(
            epoch,
            self.crossover,
            rates,
            # Parameters that share their memory are one of the bank's.
            [kinds[name] for name in outcome.names],
            outcome,
            self.check_finite,
            self.local_ratio,
        )
        if outcome.counters.device.type == "cpu":
            report.raise_pending()
        return report


def _filters(count: int | None) -> str:
    return "no filters" if count is None else f"{count} filters"


def _check_fraction(value: object, name: str) -> float:
    if not is_number(value) or not 0.0 <= float(value) <= 1.0:
        raise ValueError(f"{name} must be a number in [0, 1], got {value!r}")
    return float(value)


def _check_count(value: object, name: str, at_least: int = 0) -> int:
    if not is_integer(value) or value < at_least:
        raise ValueError(f"{name} must be an integer from {at_least}, got {value!r}")
    return int(value)
