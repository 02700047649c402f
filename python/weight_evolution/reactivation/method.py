"""`UnitReactivation`: one call after each optimizer step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from ..arguments import check_flag, check_optimizer
from ..measures import UnitActivity
from ..model.module_filters import ModuleFilter
from ..model.optimizer_state import check_optimizer_state
from ..model.state import UNLESS_LENIENT, check_same_model, check_same_options, check_state
from ..sharding.local_part import reshard
from ..tables import in_short
from .initialisation import Init
from .network_units import NetworkUnits
from .options import ReactivationOptions
from .report import ReactivationReport
from .sharded_step import ShardedUnitStep
from .step import UnitStep

_STATE_FORMAT = 1
_DEFAULTS = ReactivationOptions()


class UnitReactivation:
    """Lets units that no longer fire start anew, with fresh weights into them and none out of them.

    For networks that lose plasticity: trained on data or targets that change (continual learning, reinforcement
    learning), or at learning rates that kill units. In ordinary training on one dataset it gains nothing.

        reactivation = UnitReactivation(model, optimizer)
        for images, labels in loader:
            loss(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            reactivation.step()

    Units are output channels of convolutions and features of Linears whose outgoing weights are known
    (``graph`` says which; in `skipped` are the others, and why). Their activation behind the nonlinearity is measured
    by hooks in the last ``batches`` iterations before every ``every``-th call of `step`, in forward passes that record
    gradients (an evaluation under ``torch.no_grad`` in between does not count). That call then acts: units whose mean
    absolute activation is at most ``threshold`` of their layer's mean are drawn anew. Incoming weights are random,
    with the mean L1 norm of the layer's other units; the bias is 0; a BatchNorm behind it gets the other units' mean
    scale, shift 0 and fresh statistics; outgoing weights are 0, so that the revival of a dead unit does not change what
    the network computes. A unit of a depthwise convolution starts anew with the one that it reads.

    The optimizer's state decides whether that helps: under Adam, moments of 0 with the step counter of long ago make
    the first steps several times too large. Use `UnitAdamW`, which counts every element's age, or leave
    ``optimizer_state="fill"``.

    Neither measuring nor acting waits for the device (with several ranks, the all-reduce may). Random numbers depend on
    ``seed``, the step and the element only: ranks stay equal.

    Parameters may be DTensors that are spread by their rows (FSDP2, HSDP): make this after ``fully_shard``. Acting is
    then collective over the ranks that hold the shards, and waits for the device; the result is that of one process.

    Source: Sokar et al., "The Dormant Neuron Phenomenon in Deep Reinforcement Learning", ICML 2023 (arXiv 2302.12902)
    for scores and recycling; Dohare et al., Nature 632 (2024) for ``replacement_rate``. Scale and optimizer state are
    this package's own.

    Args:
        model: the network. Wrappers (DistributedDataParallel, torch.compile) are seen through; compile after this is
            made, since hooks are not called in what was compiled before.
        optimizer: the one that trains it. Layers with a weight that it does not train take no part.
        threshold: from 0 (dead units only): the share of the layer's mean activation.
        every: act at every so many calls of `step`.
        batches: measure in the last so many iterations before.
        scale: L1 norm of new incoming weights: "layer", the mean of the layer's other units; "donor", that of a living
            unit, the least active one that starts anew taking the most active one's (forward matching); "initial", as
            drawn (ReDo).
        outgoing: outgoing weights of new units: "zero", or "keep".
        optimizer_state: what becomes of the momentum and moments of written elements: "fill" (first moments 0, second
            ones the mean of the tensor's others), "reset" (0, see `OptimizerState`) or "keep". With `UnitAdamW` both
            "fill" and "reset" set moments to 0 and ages to that of a new element.
        importance: "activity", or "l1": score units by the L1 norm of their incoming weights instead, for networks in
            which filters are zero or tiny. Nothing is measured then.
        replacement_rate: in (0, 1]: instead of dormant units, let at each acting step so many of each layer's mature
            units start anew, those of the least utility (fractions add up over steps). None: by ``threshold``.
        maturity: acting steps after which a unit can be replaced for its utility.
        decay: in [0, 1), of the running average of utilities.
        utility: "contribution", activation times the L1 norm of the outgoing weights (as published); or "adaptation",
            that divided by the L1 norm of the incoming ones.
        init: ``(tensor) -> None``, fills it with new weights, like those of torch.nn.init; PyTorch's own for
            convolutions and Linears when left out. Called with a fixed seed for every layer at every acting step.
        include: only layers of these names (with all inside them), name patterns (``*``) or types.
        exclude: no layers of these names, patterns or types.
        example_inputs: arguments of forward, a tensor or a tuple, for models that torch.fx cannot trace.
        all_ranks: average activations over all ranks of torch.distributed where it is initialized; False for networks
            that are trained independently: over no others, or, of DTensors, the ranks that hold their shards.
        seed: of the random weights.

    Raises:
        TypeError, ValueError: name the argument and say what to do; ValueError, too, if no layer can take part.
            TypeError: a parameter is a DTensor that is spread in another way than by its rows.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        threshold: float = _DEFAULTS.threshold,
        every: int = _DEFAULTS.every,
        batches: int = _DEFAULTS.batches,
        scale: str = _DEFAULTS.scale,
        outgoing: str = _DEFAULTS.outgoing,
        optimizer_state: str = "fill",
        importance: str = _DEFAULTS.importance,
        replacement_rate: float | None = _DEFAULTS.replacement_rate,
        maturity: int = _DEFAULTS.maturity,
        decay: float = _DEFAULTS.decay,
        utility: str = _DEFAULTS.utility,
        init: Init | None = None,
        include: Sequence[ModuleFilter] | None = None,
        exclude: Sequence[ModuleFilter] = (),
        example_inputs: Tensor | tuple[Tensor, ...] | None = None,
        all_ranks: bool = _DEFAULTS.all_ranks,
        seed: int = _DEFAULTS.seed,
    ) -> None:
        self._options = options = ReactivationOptions.of(locals())
        state = check_optimizer_state(check_optimizer(optimizer), optimizer_state)
        assert state is not None
        if init is not None and not callable(init):
            raise TypeError(f"init must be a callable (tensor) -> None, got {type(init).__name__}")
        self._model, self._state = model, state
        self._activity = UnitActivity(
            model, include=include, exclude=exclude, example_inputs=example_inputs, with_gradients=True
        )
        self._units = NetworkUnits(self._activity.graph, scale, outgoing)
        state.check_trains(self._units.parameters)
        if len(self._frozen) == len(self._units.layers):
            raise ValueError(f"no layer of the model can take part: {in_short(self.skipped)}")
        parts = self._units, state, options, init
        shards = self._activity.shards
        self._acting = UnitStep(*parts) if shards is None else ShardedUnitStep(*parts, shards=shards)
        self._units.keep_resets(optimizer)
        self._iteration = self._steps = 0
        self._watch()

    @classmethod
    def redo(
        cls, model: nn.Module, optimizer: Optimizer, *, threshold: float = 0.1, every: int = 1000, **options: Any
    ) -> UnitReactivation:
        """ReDo as published: weights as drawn, moments 0 with the shared step counter.

        Differs from the published program in that moments of biases are 0, too, and that weights are drawn from
        PyTorch's initialisation. Source: Sokar et al., ICML 2023 (arXiv 2302.12902), Algorithm 1.

        Args:
            model, optimizer: as of the class.
            threshold, every: tau and the period F of the paper.
            options: further ones of the class.
        """
        published: dict[str, Any] = {"scale": "initial", "optimizer_state": "reset"}
        return cls(model, optimizer, threshold=threshold, every=every, **(published | options))

    @classmethod
    def continual_backprop(
        cls,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        replacement_rate: float = 1e-4,
        maturity: int = 100,
        decay: float = 0.99,
        **options: Any,
    ) -> UnitReactivation:
        """Continual backprop as published: at each iteration, the least useful mature units, by contribution utility.

        The published program counts Adam's steps for each element, as `UnitAdamW` does; with any other optimizer its
        state is reset. It adds to the next layer's biases what replaced units put out on average, this does not.
        Source: Dohare et al., Nature 632 (2024), Algorithm 1.

        Args:
            model, optimizer: as of the class.
            replacement_rate, maturity, decay: rho, m and eta of the paper.
            options: further ones of the class.
        """
        published: dict[str, Any] = {"scale": "initial", "optimizer_state": "reset", "every": 1, "batches": 1}
        return cls(
            model,
            optimizer,
            replacement_rate=replacement_rate,
            maturity=maturity,
            decay=decay,
            **(published | options),
        )

    threshold = property(attrgetter("_options.threshold"), doc="Read-only, as all options are.")
    every = property(attrgetter("_options.every"))
    batches = property(attrgetter("_options.batches"))
    scale = property(attrgetter("_options.scale"))
    outgoing = property(attrgetter("_options.outgoing"))
    importance = property(attrgetter("_options.importance"))
    replacement_rate = property(attrgetter("_options.replacement_rate"))
    maturity = property(attrgetter("_options.maturity"))
    decay = property(attrgetter("_options.decay"))
    utility = property(attrgetter("_options.utility"))
    seed = property(attrgetter("_options.seed"))
    optimizer_state = property(attrgetter("_state.choice"))
    graph = property(attrgetter("_activity.graph"), doc="Which weights go into and out of each unit.")

    @property
    def iterations(self) -> int:
        """Calls of `step` so far."""
        return self._iteration

    @property
    def steps(self) -> int:
        """Steps so far that acted."""
        return self._steps

    @property
    def skipped(self) -> dict[str, str]:
        """Layer name -> why its units take no part."""
        return self._activity.graph.skipped | self._frozen

    @property
    def _frozen(self) -> dict[str, str]:
        reshard(self._model)
        return self._units.reasons_against(self._state.optimizer)

    @torch.no_grad()
    def step(self) -> ReactivationReport | None:
        """Count an iteration; at every ``every``-th, revive units and return the report.

        Call it after ``optimizer.step()``. Returns None when it does not act.

        Raises:
            RuntimeError: a layer was replaced since this was made, or no forward pass with gradients was seen in the
                iterations that were to be measured.
            TypeError, ValueError: a tensor of the model was resized, freed, moved away from the others or converted.
            ExchangeError: of DTensors, another rank failed, or did not come; nothing was changed. The next call acts in
                place of one that has raised.
        """
        acts = (self._iteration + 1) % self.every == 0
        report = self._act() if acts else None
        self._iteration += 1
        self._watch()
        return report

    def detach(self) -> None:
        """Remove the hooks that measure; the next `step` puts them back where they are needed."""
        self._activity.stop()

    def state_dict(self, *, all_ranks: bool = False) -> dict[str, Any]:
        """Iterations, steps, what the selection and a measurement that has begun remember; waits for the device.

        Plain numbers, strings, lists and dicts.

        Args:
            all_ranks: True for a measurement that has begun with what all ranks have seen that are averaged over, the
                same on each: a collective that all must call. Where several ranks load it the first one goes on with
                it. With False it is what this rank has seen.

        Raises:
            ExchangeError: another rank did not take part.
        """
        group = self._activity.averaged_over(self._options.all_ranks)
        together = group if check_flag(all_ranks, "all_ranks") else None
        return {
            "format": _STATE_FORMAT,
            "iteration": self._iteration,
            "steps": self._steps,
            "units": dict(zip(self._units.layers, self._units.sizes, strict=True)),
            "options": self._options.to_dict(),
            "selection": self._acting.selection.state_dict(),
            "activity": self._activity.state_dict(group=together) if self._activity.measuring else {},
            "of_all_ranks": together is group,
        }

    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True) -> None:
        """Go on where `state_dict` was taken.

        Args:
            state: what that returned.
            strict: refuse a state that was saved with other options. False: go on with those of this object.

        Raises:
            ValueError: the state is of another format or model, or was saved with another option; names the first
                difference. RuntimeError: a layer was replaced since this was made. Nothing is changed.
        """
        entries = {"iteration": int, "steps": int, "units": dict, "options": dict, "selection": dict, "activity": dict}
        check_state(state, "UnitReactivation", (_STATE_FORMAT,), entries)
        here = dict(zip(self._units.layers, self._units.sizes, strict=True))
        check_same_model(state["units"], here, "{} units")
        if strict:
            check_same_options(state["options"], self._options.to_dict(), "UnitReactivation", UNLESS_LENIENT)
        if state["activity"]:
            self._activity.check_state(state["activity"])
        self._acting.selection.load_state_dict(state["selection"])
        self._iteration, self._steps = state["iteration"], state["steps"]
        group = self._activity.averaged_over(self._options.all_ranks)
        others = bool(state.get("of_all_ranks")) and group is not None and dist.get_rank(group) > 0
        self._resume(self._activity.without_sums(state["activity"]) if others else state["activity"])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "measured": self._activity.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A copy, together with model and optimizer."""
        measured = state.pop("measured")
        self.__dict__.update(state)
        self._resume(measured)

    def __repr__(self) -> str:
        return f"<UnitReactivation of {len(self.graph.layers)} layers, {self._steps} steps>"

    def _resume(self, measured: Mapping[str, Any]) -> None:
        self._activity.stop()
        self._watch()
        if measured and self._activity.measuring:
            self._activity.load_state_dict(measured)

    def _watch(self) -> None:
        """Measure in the last iterations before an acting step, and only then."""
        if self.importance == "l1":
            return
        wanted = self.every - self._iteration % self.every <= self.batches
        if wanted and not self._activity.measuring:
            self._activity.start()
        elif not wanted:
            self._activity.stop()

    def _act(self) -> ReactivationReport:
        activations = None
        if self.importance == "activity":
            activations = self._activity.activations(all_ranks=self._options.all_ranks)
        frozen = self._frozen
        revived = self._acting.run(activations, self._steps, frozen)
        self._activity.clear()
        self._steps += 1
        return ReactivationReport(
            self._iteration + 1,
            list(self._units.layers),
            self._units.sizes,
            revived,
            activations,
            self._activity.graph.skipped | frozen,
        )
