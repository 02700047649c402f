"""Callbacks for the Trainer of Hugging Face's transformers; needs the extra ``transformers``.

Each makes its method when training starts, from the Trainer's model and optimizer. Its state is in the
``trainer_state.json`` of every checkpoint, and ``trainer.train(resume_from_checkpoint=...)`` goes on with it, with or
without ``restore_callback_states_from_checkpoint``.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from torch import nn
from torch.optim import Optimizer

from weight_evolution import AsynchronousUpdate, LowRankProjection, UnitReactivation, WeightEvolution

from ..arguments import check_count, check_flag, unless_none
from ..reports import Report
from .missing import needs
from .periods import PeriodicEvolution, period

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_callback import ExportableState
except ImportError as error:
    raise needs("transformers (with accelerate)", "transformers") from error


class _Method(Protocol):
    def state_dict(self) -> dict[str, Any]: ...


Kind = TypeVar("Kind", bound=_Method)


class MethodCallback(TrainerCallback, ExportableState, Generic[Kind]):
    """What the callbacks share: the method's state in checkpoints, and where its numbers go.

    The Trainer keeps one state for each class of callbacks: for a second one of a kind, derive a class.

    Args:
        arguments: of the class, by which the Trainer makes it again where it is told to restore callbacks.
        options: of the method's class.
    """

    log: Callable[[dict[str, float]], None] | None = None
    """Where numbers go, such as ``trainer.log``, which tells every logger; None: to ``state.log_history`` only."""
    saved: Mapping[str, Any] | None = None
    """The method's state in the checkpoint that the Trainer made this from; set by the Trainer."""

    _prefix: ClassVar[str] = ""
    """Of the names of its numbers."""

    def __init__(self, arguments: Mapping[str, Any], options: Mapping[str, Any]) -> None:
        self._arguments = {**arguments, **options}
        self._options = dict(options)
        self._method: Kind | None = None

    def state(self) -> dict[str, Any]:
        """Arguments, as far as they fit into JSON, and the method's state."""
        saved = self.saved if self._method is None else self._state(self._method)
        return {"args": {k: v for k, v in self._arguments.items() if _fits_json(v)}, "attributes": {"saved": saved}}

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        **others: Any,
    ) -> None:
        """Make the method, and go on where the checkpoint was saved."""
        self._detach()
        name = type(self).__name__
        entry = state.stateful_callbacks.get(name)
        if isinstance(entry, list):
            raise ValueError(
                f"the Trainer has {len(entry)} callbacks of a class named {name}, whose states it cannot tell apart in "
                "a checkpoint; derive a class of another name for each further one"
            )
        self._method = method = self._make(args, state, model, optimizer)
        saved = entry["attributes"]["saved"] if entry else None
        if saved and state.global_step > 0:
            self._load(method, saved)
        # A checkpoint of a run without this callback has no entry, which the Trainer looks for when it saves.
        state.stateful_callbacks[name] = self.state()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Take away hooks; the method can still be looked at."""
        self._detach()

    def _make(self, args: TrainingArguments, state: TrainerState, model: nn.Module, optimizer: Optimizer) -> Kind:
        raise NotImplementedError

    def _state(self, method: Kind) -> dict[str, Any]:
        return method.state_dict()

    def _load(self, method: Kind, saved: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def _detach(self) -> None:
        """Take away the method's hooks, where it has any."""

    def __repr__(self) -> str:
        made = "before training" if self._method is None else repr(self._method)
        return f"<{type(self).__name__}: {made}>"

    def _made(self) -> Kind:
        if self._method is None:
            raise RuntimeError(f"{type(self).__name__} makes its method when training starts; call trainer.train first")
        return self._method

    def _tell(self, report: Report, state: TrainerState) -> None:
        numbers = {f"{self._prefix}/{name}": float(value) for name, value in report.scalars().items()}
        if self.log is not None:
            self.log(numbers)
        else:
            state.log_history.append({**numbers, "epoch": state.epoch, "step": state.global_step})


class EvolutionCallback(MethodCallback[PeriodicEvolution]):
    """`WeightEvolution` between epochs.

        Trainer(model, args, train_dataset=..., eval_dataset=..., callbacks=[EvolutionCallback()]).train()

    It evolves when the first step of the next epoch is about to be made, since the Trainer evaluates and saves after
    its ``on_epoch_end``: evaluations, checkpoints and the best model are of the network that was trained, and after the
    last epoch nothing is evolved. A resumed run evolves when one that never stopped does.

    Args:
        every_n_epochs: evolve after every n-th epoch.
        every_n_steps: instead: after every n-th step of the optimizer. Steps this frequent cost accuracy unless
            ``norm_shift_rate`` is "inferior" or 0. The schedule and ``epochs`` then count steps.
        strict: refuse to resume with other options than the checkpoint's. False: go on with these, as when a run is
            extended.
        options: of `WeightEvolution`. When left out, ``epochs`` is the Trainer's, and the schedule has its published
            stages over the whole run.

    Raises:
        TypeError, ValueError: name the argument; those of options come when training starts.
    """

    _prefix = "evolution"

    def __init__(
        self,
        *,
        every_n_epochs: int | None = None,
        every_n_steps: int | None = None,
        strict: bool = True,
        **options: Any,
    ) -> None:
        arguments = {"every_n_epochs": every_n_epochs, "every_n_steps": every_n_steps, "strict": strict}
        super().__init__(arguments, options)
        self._every, self._by_steps = period(every_n_epochs, every_n_steps, "every_n_steps")
        self._strict = check_flag(strict, "strict")
        self._ended = 0

    @property
    def evolution(self) -> WeightEvolution:
        """The evolution; made when training starts."""
        return self._made().evolution

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Count an epoch that ended before its last step, or whose length the Trainer did not know."""
        self._ended = math.ceil(state.epoch)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any
    ) -> None:
        """Evolve before the first step after a period."""
        report = self._made().step(self._done(state))
        if report is not None:
            self._tell(report, state)

    def _make(
        self, args: TrainingArguments, state: TrainerState, model: nn.Module, optimizer: Optimizer
    ) -> PeriodicEvolution:
        self._ended = 0
        total: int | None = state.max_steps if self._by_steps else state.num_train_epochs
        if total == sys.maxsize:  # of a dataset without a length
            total = None
        done = self._done(state)
        return PeriodicEvolution(model, optimizer, total=total, every=self._every, done=done, options=self._options)

    def _load(self, method: PeriodicEvolution, saved: Mapping[str, Any]) -> None:
        method.load_state_dict(saved, strict=self._strict)

    def _done(self, state: TrainerState) -> int:
        return state.global_step if self._by_steps else max(int(state.epoch), self._ended)


class ReactivationCallback(MethodCallback[UnitReactivation]):
    """`UnitReactivation` after each step of the optimizer, before what is evaluated and saved then.

    Args:
        strict: refuse to resume with other options than the checkpoint's.
        options: of `UnitReactivation`; ``example_inputs`` for a model that torch.fx cannot trace.

    Raises:
        TypeError, ValueError: name the argument; those of options come when training starts.
    """

    _prefix = "reactivation"

    def __init__(self, *, strict: bool = True, **options: Any) -> None:
        super().__init__({"strict": strict}, options)
        self._strict = check_flag(strict, "strict")

    @property
    def reactivation(self) -> UnitReactivation:
        """The reactivation; made when training starts."""
        return self._made()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **others: Any) -> None:
        """Count a step of the optimizer; at every n-th, units start anew."""
        report = self.reactivation.step()
        if report is not None:
            self._tell(report, state)

    def _make(
        self, args: TrainingArguments, state: TrainerState, model: nn.Module, optimizer: Optimizer
    ) -> UnitReactivation:
        return UnitReactivation(model, optimizer, **self._options)

    def _load(self, method: UnitReactivation, saved: Mapping[str, Any]) -> None:
        method.load_state_dict(saved, strict=self._strict)

    def _detach(self) -> None:
        if self._method is not None:
            self._method.detach()


class LowRankCallback(MethodCallback[LowRankProjection]):
    """`LowRankProjection` at the end of each epoch: what is evaluated and saved then is projected.

    After ``trainer.train``, ``callback.projection.compact()`` is the compact network. Ranks by ``budget`` are chosen at
    the first projection. The Trainer keeps no tensors of callbacks, so a resumed run projects from new bases: like one
    that never stopped, up to rounding.

    Args:
        every_n_steps: also project within epochs, after every n-th step of the optimizer.
        options: of `LowRankProjection`.

    Raises:
        TypeError, ValueError: name the argument; those of options come when training starts.
    """

    _prefix = "low_rank"

    def __init__(self, *, every_n_steps: int | None = None, **options: Any) -> None:
        super().__init__({"every_n_steps": every_n_steps}, options)
        self._every = unless_none(every_n_steps, "every_n_steps", check_count, 1)
        self._step = 0

    @property
    def projection(self) -> LowRankProjection:
        """The projection; made when training starts."""
        return self._made()

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        **others: Any,
    ) -> None:
        """Project after the last step of an epoch, and every so many steps if asked for."""
        if state.epoch == int(state.epoch) or (self._every is not None and state.global_step % self._every == 0):
            self._project(state, model, optimizer)

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        *,
        model: nn.Module,
        optimizer: Optimizer,
        **others: Any,
    ) -> None:
        """Project what was trained since, where the Trainer did not know that an epoch ends."""
        self._project(state, model, optimizer)

    def _project(self, state: TrainerState, model: nn.Module, optimizer: Optimizer) -> None:
        if state.global_step == self._step:
            return
        if self.projection.steps == 0 and self._options.get("budget") is not None:
            self._method = self._projection_of(model, optimizer)
        self._step = state.global_step
        self._tell(self.projection.step(), state)

    def _make(
        self, args: TrainingArguments, state: TrainerState, model: nn.Module, optimizer: Optimizer
    ) -> LowRankProjection:
        self._step = state.global_step
        return self._projection_of(model, optimizer)

    def _projection_of(self, model: nn.Module, optimizer: Optimizer) -> LowRankProjection:
        return LowRankProjection(model, **{"optimizer": optimizer, **self._options})

    def _state(self, method: LowRankProjection) -> dict[str, Any]:
        return {**method.state_dict(), "bases": {}}

    def _load(self, method: LowRankProjection, saved: Mapping[str, Any]) -> None:
        method.load_state_dict(saved)


class AsynchronousCallback(MethodCallback[AsynchronousUpdate]):
    """`AsynchronousUpdate` of the optimizer: of each of its steps a random part of the filters keeps what it did.

    Args:
        options: of `AsynchronousUpdate`.

    Raises:
        TypeError, ValueError: name the argument; those of options come when training starts.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__({}, options)

    @property
    def update(self) -> AsynchronousUpdate:
        """The update; made when training starts."""
        return self._made()

    def _make(
        self, args: TrainingArguments, state: TrainerState, model: nn.Module, optimizer: Optimizer
    ) -> AsynchronousUpdate:
        return AsynchronousUpdate(optimizer, model, **self._options)

    def _state(self, method: AsynchronousUpdate) -> dict[str, Any]:
        """With the filters as pairs: the Trainer sorts the keys of dictionaries."""
        state = method.state_dict()
        return {**state, "filters": list(map(list, state["filters"].items()))}

    def _load(self, method: AsynchronousUpdate, saved: Mapping[str, Any]) -> None:
        method.load_state_dict({**saved, "filters": dict(saved["filters"])})

    def _detach(self) -> None:
        if self._method is not None:
            self._method.detach()


def _fits_json(value: Any) -> bool:
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except TypeError:
        return False
