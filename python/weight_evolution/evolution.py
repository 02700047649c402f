"""`WeightEvolution`: one call after each epoch."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from we_kernels.checks import check_rule

from .device_step import DeviceStep, Outcome
from .optimizer_state import check_optimizer_state
from .parameters import ModuleFilter, find_targets
from .report import EvolutionReport
from .schedule import Schedule, StagedSigmoid

_STATE_FORMAT = 1


class WeightEvolution:
    """Evolves the inferior filters of a model by crossover with dominant filters of their layer.

    Call `step` after each epoch, when the epoch's accuracy has been measured. All trainable weights of convolutions
    (1d, 2d, 3d, transposed) and the scales and shifts of BatchNorms (SyncBatchNorm too) take part, in module order;
    rows of Linears when ``linear_rate > 0``. Running statistics and convolution biases are not touched.

    Source: Lin et al., "Weight Evolution: Improving Deep Neural Networks Training through Evolving Inferior Weight
    Values", ACM MM 2021 (arXiv 2110.04492).

    Args:
        model: the network; its parameters may later move between devices or be reloaded.
        conv_rate, norm_scale_rate, norm_shift_rate, linear_rate: base rates in [0, 1]: the share of all filters (or
            elements) of that kind in the network that may be inferior. 0 turns Linears off.
        local_ratio: in [0, 1]; an inferior filter's importance is at most this share of its layer's largest.
        starvation_divisor: positive; after (number of convolutions) / starvation_divisor layers in a row with globally
            but no locally inferior filters, the layer at hand gives up one.
        schedule: ``(base_rate, epoch) -> rate``; `StagedSigmoid.cifar()` when left out.
        crossover: "paper" or "released", see `we_kernels.crossover_`.
        check_finite: raise when a weight is NaN or infinite. Such a step changes nothing, with or without the check,
            which costs no pass over the weights: their importances tell.
        include: only modules of these names (with all inside them), name patterns (``*``) or types.
        exclude: no modules of these names, patterns or types.
        optimizer: the one that trains the model, so that its state can change with the weights.
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

    Raises:
        TypeError, ValueError: name the argument or parameter and say what to do.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        conv_rate: float = 0.2,
        norm_scale_rate: float = 0.05,
        norm_shift_rate: float = 0.05,
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
    ) -> None:
        self.base_rates = {
            "conv": _check_fraction(conv_rate, "conv_rate"),
            "norm_scale": _check_fraction(norm_scale_rate, "norm_scale_rate"),
            "norm_shift": _check_fraction(norm_shift_rate, "norm_shift_rate"),
            "linear": _check_fraction(linear_rate, "linear_rate"),
        }
        self.local_ratio = _check_fraction(local_ratio, "local_ratio")
        if not _is_number(starvation_divisor) or not 0 < starvation_divisor < math.inf:
            raise ValueError(f"starvation_divisor must be a positive number, got {starvation_divisor!r}")
        state = check_optimizer_state(optimizer, optimizer_state)
        if schedule is not None and not callable(schedule):
            raise TypeError(f"schedule must be a callable (base_rate, epoch) -> rate, got {type(schedule).__name__}")
        self.schedule: Schedule = StagedSigmoid.cifar() if schedule is None else schedule
        self.crossover = check_rule(crossover, "crossover")
        self.check_finite = check_finite
        if cuda_graph and optimizer_state != "keep":
            raise ValueError('cuda_graph=True needs optimizer_state="keep": a graph would write to outdated state')
        self._targets = find_targets(model, linear=linear_rate > 0, include=include, exclude=exclude)
        if state is not None:
            state.check_trains([target.parameter for target in self._targets.items])
        convs = sum(target.kind == "conv" for target in self._targets.items)
        self._device_step = DeviceStep(
            self._targets,
            local_ratio=self.local_ratio,
            crossover=self.crossover,
            # Without a convolution no filter can starve, but BatchNorms alone still need a limit.
            starvation_limit=max(convs, 1) / starvation_divisor,
            measure_after=measure_after,
            optimizer_state=None if cuda_graph else state,
            cuda_graph=cuda_graph,
        )
        self._epoch = 0
        self._unchecked: deque[EvolutionReport] = deque()

    @property
    def epoch(self) -> int:
        """The epoch that the next `step` counts as, from 0."""
        return self._epoch

    @property
    def skipped(self) -> dict[str, str]:
        """Parameters that do not take part, and why."""
        return dict(self._targets.skipped)

    @torch.no_grad()
    def step(self, epoch: int | None = None) -> EvolutionReport:
        """One evolution of the whole model.

        On a GPU it returns without waiting for the device, as long as the parameters stay where they are. The report
        waits when it is read. With ``check_finite``, a weight that is not finite then raises once: when the report is
        first read, or at the next step that finds the device through with this one, whichever comes first; that next
        step is not done.

        Args:
            epoch: the epoch just trained, from 0; one more than last time when left out.

        Raises:
            ValueError: the schedule gave a rate outside [0, 1], or ``epoch`` is negative, or the parameters are on
                several devices.
            NonFiniteWeightError: a weight is NaN or infinite (on a GPU: was at an earlier step); nothing was changed.
            RuntimeError: called while a CUDA graph is captured (see ``cuda_graph``).
        """
        while self._unchecked and self._unchecked[0].arrived:
            self._unchecked.popleft().raise_pending()
        epoch = self._check_epoch(epoch)
        rates = self._rates(epoch)
        report = self._report(epoch, rates, self._device_step.run(list(rates.values())))
        if report.pending:
            self._unchecked.append(report)
        self._epoch = epoch + 1
        return report

    @torch.no_grad()
    def preview(self, epoch: int | None = None) -> EvolutionReport:
        """What `step` would select now; changes neither the model nor the counters. Waits as little as `step`."""
        epoch = self._check_epoch(epoch)
        rates = self._rates(epoch)
        return self._report(epoch, rates, self._device_step.preview(list(rates.values())))

    def state_dict(self) -> dict[str, Any]:
        """Next epoch, starvation counters and the model's filters (to recognize it); plain numbers and strings."""
        bank = self._targets.bank()
        return {
            "format": _STATE_FORMAT,
            "epoch": self._epoch,
            "starvation": dict(zip(self._targets.kinds, self._device_step.counters, strict=True)),
            "filters": dict(zip(bank.names, bank.sizes, strict=True)),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume where `state_dict` was taken.

        Raises:
            ValueError: the state is of another format or another model; names the first difference. Nothing is changed.
        """
        try:
            version, epoch = state["format"], state["epoch"]
            starvation, filters = dict(state["starvation"]), dict(state["filters"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"state is not a WeightEvolution state_dict ({error!r})") from None
        if version != _STATE_FORMAT:
            raise ValueError(f"state has format {version}, this version reads {_STATE_FORMAT}")
        bank = self._targets.bank()
        own = dict(zip(bank.names, bank.sizes, strict=True))
        for name in [*own, *filters]:
            if own.get(name) != filters.get(name):
                raise ValueError(
                    f"state is of another model: {name} has {_filters(filters.get(name))} there "
                    f"and {_filters(own.get(name))} here"
                )
        if list(starvation) != self._targets.kinds:
            raise ValueError(f"state counts starvation of {list(starvation)}, this model of {self._targets.kinds}")
        counters = [_check_count(value, f"state['starvation'][{kind!r}]") for kind, value in starvation.items()]
        self._epoch = _check_count(epoch, "state['epoch']")
        self._device_step.counters = counters
        self._unchecked.clear()

    def _check_epoch(self, epoch: int | None) -> int:
        return self._epoch if epoch is None else _check_count(epoch, "epoch")

    def _rates(self, epoch: int) -> dict[str, float]:
        return {
            kind: _check_fraction(self.schedule(self.base_rates[kind], epoch), f"schedule({kind} rate, epoch {epoch})")
            for kind in self._targets.kinds
        }

    def _report(self, epoch: int, rates: dict[str, float], outcome: Outcome) -> EvolutionReport:
        report = EvolutionReport(
            epoch, self.crossover, rates, [target.kind for target in self._targets.items], outcome, self.check_finite
        )
        if outcome.counters.device.type == "cpu":
            report.raise_pending()
        return report


def _filters(count: int | None) -> str:
    return "no filters" if count is None else f"{count} filters"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_fraction(value: float, name: str) -> float:
    if not _is_number(value) or not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must be a number in [0, 1], got {value!r}")
    return float(value)


def _check_count(value: int, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{name} must be an integer from 0, got {value!r}")
    return value
