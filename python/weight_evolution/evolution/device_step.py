"""The device's part of a step. Nothing in it waits for the device, so that a CUDA graph can hold it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

import we_kernels as wk

from ..model.optimizer_state import OptimizerState, StateUpdate
from ..model.targets import Targets
from ..model.writing import overwrite_
from ..sharding.local_part import local_part
from .inferior_shifts import InferiorShifts
from .linear_biases import blended_bias, check_spread
from .options import EvolutionOptions


class Outcome(NamedTuple):
    """What a step found and did, on the model's device."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    """Filters of each parameter."""
    selection: wk.Selection
    counters: Tensor
    """int32 [G]: starvation counters after the step."""
    importance_after: Tensor | None
    """float32 [F]."""

    def copy(self) -> Outcome:
        """In memory of its own: the next replay overwrites what a recording made."""
        return self._replace(
            selection=wk.Selection(*(part.clone() for part in self.selection)),
            counters=self.counters.clone(),
            importance_after=None if self.importance_after is None else self.importance_after.clone(),
        )


_Memory = tuple[wk.FilterBank, tuple[int, ...]]
"""A bank, which is made anew when a weight moves, and the addresses of the biases."""


class _Recording(NamedTuple):
    """A captured step; replaying it fills the tensors of ``outcome`` anew."""

    graph: torch.cuda.CUDAGraph
    outcome: Outcome
    made_for: _Memory


class DeviceStep:
    """Evolves the targets with rates and starvation counters that live on their device.

    Args:
        targets: the parameters that take part.
        inferior_shifts: restricts the shifts, if any.
        options, measure_after: see `WeightEvolution`.
        optimizer_state: the optimizer whose state changes with the weights, if any.
        cuda_graph: replay a recording of the step where the model is on a GPU. The first step after the parameters
            moved runs as ever (it compiles kernels and fills tables), the second is recorded.

    Raises:
        TypeError: a bias is spread over ranks in another way than its rows.
    """

    def __init__(
        self,
        targets: Targets,
        inferior_shifts: InferiorShifts | None,
        options: EvolutionOptions,
        *,
        measure_after: bool,
        optimizer_state: OptimizerState | None,
        cuda_graph: bool,
    ) -> None:
        self._targets = targets
        self._local_ratios = [None if kind == "linear" else options.local_ratio for kind in targets.kinds]
        # As the released program, which leaves dead filters where they outnumber the rate's share, or as the paper.
        self._zero_is_inferior = [options.crossover == "paper" and kind in ("conv", "linear") for kind in targets.kinds]
        self._crossover = options.crossover
        self._importance = None if isinstance(options.importance, str) else options.importance
        self._inferior_shifts = inferior_shifts
        convs = sum(target.kind == "conv" for target in targets.items)
        divisor = options.starvation_divisor
        # Without a convolution no filter can starve, but BatchNorms alone still need a limit.
        self._starvation_limit = None if divisor is None else max(convs, 1) / divisor
        self._measure_after = measure_after
        self._optimizer_state = optimizer_state
        self._cuda_graph = cuda_graph
        with torch.inference_mode(False):  # or they could not be written to in another mode
            self._rates = torch.empty(0, dtype=torch.float64, device="cpu")
            self._counters = torch.zeros(len(targets.kinds), dtype=torch.int32, device="cpu")
        self._rates_sent: tuple[float, ...] = ()
        for position, bias in self._biases():
            check_spread(targets, position, bias)
        self._warm: _Memory | None = None
        self._recording: _Recording | None = None

    @property
    def counters(self) -> list[int]:
        """Starvation counters of the groups; waits for the device."""
        values: list[int] = self._counters.tolist()
        return values

    @counters.setter
    def counters(self, values: Sequence[int]) -> None:
        # In place: a recorded step counts in this tensor.
        wk.send_(self._counters, tuple(values))

    def run(self, rates: Sequence[float]) -> Outcome:
        """One step.

        Raises:
            RuntimeError: the caller is capturing a CUDA graph.
            BackendUnavailableError: a graph is asked for, and there is only the torch backend.
        """
        bank = self._targets.bank()
        if wk.is_capturing(bank.device):
            raise RuntimeError(
                "WeightEvolution.step() cannot be captured, its rates change from epoch to epoch on the host; pass "
                "cuda_graph=True, or capture we_kernels.evolve_ with the rates in a tensor"
            )
        self._send(tuple(rates), bank.device)
        if not self._cuda_graph or bank.device.type != "cuda":
            return self._evolve(bank)
        if wk.backend_of("evolve_", bank.device) == "torch":
            raise wk.BackendUnavailableError(
                "cuda_graph=True needs a backend that does not wait for the device, and torch does; install Triton "
                "(pip install triton), or build the extension with CUDA, or leave it out"
            )
        memory = bank, tuple(bias.data_ptr() for _, bias in self._biases())
        if self._recording is None or self._recording.made_for != memory:
            self._recording = None
            if self._warm != memory:
                self._warm = memory
                return self._evolve(bank)
            self._recording = self._record(memory)
        self._recording.graph.replay()
        changed = [*bank.weights, *(bias for _, bias in self._biases()), self._counters]
        increment_version(changed)
        return self._recording.outcome.copy()

    def preview(self, rates: Sequence[float]) -> Outcome:
        """What `run` would select; changes nothing."""
        bank = self._targets.bank()
        self._send(tuple(rates), bank.device)
        counters = self._counters.clone()
        selection = self._select(bank, wk.filter_importance(bank), counters)
        return Outcome(bank.names, bank.sizes, selection, counters, None)

    @torch.inference_mode(False)
    def _send(self, rates: tuple[float, ...], device: torch.device) -> None:
        """The rates to the device, if it has others, and the counters, if the model moved."""
        if self._counters.device != device:
            self._counters = wk.to_device(tuple(self._counters.tolist()), torch.int32, device)
        if self._rates.device != device or len(self._rates) != len(rates):
            self._rates, self._rates_sent = torch.zeros(len(rates), dtype=torch.float64, device=device), ()
        if self._rates_sent != rates:
            wk.send_(self._rates, rates)
            self._rates_sent = rates

    def _evolve(self, bank: wk.FilterBank) -> Outcome:
        state = self._optimizer_state and StateUpdate(self._optimizer_state, self._parameters())
        if self._inferior_shifts is None and self._importance is None:
            selection = wk.evolve_(bank, rule=self._crossover, **self._matching(self._counters))
            norms = selection.importance
        else:
            norms = wk.filter_importance(bank)
            selection = self._select(bank, norms, self._counters)
            wk.crossover_(bank, selection.donor, self._crossover, validate=False)
        self._blend_linear_biases(bank, selection.donor, norms)
        if state:
            state.apply_()
        after = self._measure(bank, wk.filter_importance(bank)) if self._measure_after else None
        return Outcome(bank.names, bank.sizes, selection, self._counters.clone(), after)

    def _select(self, bank: wk.FilterBank, norms: Tensor, counters: Tensor) -> wk.Selection:
        return self._match(bank, self._measure(bank, norms), counters)

    def _match(self, bank: wk.FilterBank, importance: Tensor, counters: Tensor) -> wk.Selection:
        selection = wk.match_filters(bank, importance, **self._matching(counters))
        return selection if self._inferior_shifts is None else self._inferior_shifts.restrict(bank, selection)

    def _measure(self, bank: wk.FilterBank, norms: Tensor) -> Tensor:
        """float32 [F]: the importances to match by, NaN where those or the weights (so the L1 norms) are no good."""
        if self._importance is None:
            return norms
        importance = self._importance(bank)
        if not isinstance(importance, Tensor) or importance.dtype != torch.float32:
            given = importance.dtype if isinstance(importance, Tensor) else type(importance).__name__
            raise TypeError(f"importance must give a float32 tensor, one number for each filter, got {given}")
        if importance.shape != norms.shape or importance.device != norms.device:
            raise ValueError(
                f"importance must give shape {tuple(norms.shape)} on {norms.device}, one number for each filter of the "
                f"bank, got {tuple(importance.shape)} on {importance.device}"
            )
        return torch.where(importance >= 0, importance, math.nan) + 0 * norms

    def _matching(self, counters: Tensor) -> dict[str, Any]:
        return {
            "rate": self._rates,
            "local_ratio": self._local_ratios,
            "starvation": None if self._starvation_limit is None else counters,
            "starvation_limit": self._starvation_limit,
            "zero_is_inferior": self._zero_is_inferior,
        }

    def __getstate__(self) -> dict[str, Any]:
        # A graph belongs to the memory that it was recorded for: a copy records its own.
        return {**self.__dict__, "_warm": None, "_recording": None}

    def _record(self, memory: _Memory) -> _Recording:
        bank, graph = memory[0], torch.cuda.CUDAGraph()
        # Other threads (a data loader that pins memory, say) may go on with CUDA meanwhile.
        with torch.cuda.device(bank.device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
            outcome = self._evolve(bank)
        return _Recording(graph, outcome, memory)

    def _parameters(self) -> list[Tensor]:
        """All that a step may write to."""
        return [*(target.parameter for target in self._targets.items), *(bias for _, bias in self._biases())]

    def _biases(self) -> list[tuple[int, Tensor]]:
        """The trainable biases of Linears that take part, with their position among the targets."""
        return [
            (position, bias)
            for position, target in enumerate(self._targets.items)
            if target.kind == "linear" and isinstance(bias := target.module.bias, Tensor) and bias.requires_grad
        ]

    def _blend_linear_biases(self, bank: wk.FilterBank, donor: Tensor, norms: Tensor) -> None:
        """A Linear's bias elements follow their rows, with the same coefficient."""
        biases = self._biases()
        if not biases:
            return
        donors, importances = bank.split(donor), bank.split(norms)
        for position, bias in biases:
            held = local_part(bias)
            overwrite_(held, blended_bias(held, importances[position], donors[position]))
