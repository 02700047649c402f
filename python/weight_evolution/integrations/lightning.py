"""Callbacks for Lightning's Trainer; needs the extra ``lightning``.

Each makes its method when training starts, from the LightningModule (or a part of it) and the optimizer that trains it,
keeps the method's state in Lightning's checkpoints, and logs what it did. The sanity check and validation never change
a weight: what was validated is what a checkpoint by validation loss holds. With EMA or stochastic weight averaging
beside it, the method works on the weights that are trained, not on their average.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from torch import nn
from torch.optim import Optimizer

from weight_evolution import AsynchronousUpdate, LowRankProjection, UnitReactivation, WeightEvolution

from ..arguments import check_count, check_flag, unless_none
from ..reports import Report
from .missing import needs
from .periods import PeriodicEvolution, period

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise needs("Lightning", "lightning") from error


class _Method(Protocol):
    def state_dict(self) -> dict[str, Any]: ...


Kind = TypeVar("Kind", bound=_Method)


class MethodCallback(Callback, Generic[Kind]):
    """What the callbacks share: the part of the LightningModule, the optimizer, and the state in checkpoints.

    Args:
        module: name of the submodule that the method works on; the whole LightningModule when left out.
        optimizer: number of the optimizer among those of ``configure_optimizers``.
        options: of the method's class.
    """

    _prefix: ClassVar[str] = ""
    """Of the names of what is logged."""

    def __init__(self, module: str, optimizer: int, options: Mapping[str, Any]) -> None:
        if not isinstance(module, str):
            raise TypeError(f"module must be the name of a submodule, a string, got {type(module).__name__}")
        self._module, self._optimizer = module, check_count(optimizer, "optimizer")
        self._options = dict(options)
        self._method: Kind | None = None
        self._saved: Mapping[str, Any] | None = None
        self._max_epochs: int | None = None

    @property
    def state_key(self) -> str:
        """Tells callbacks of one class apart in a checkpoint."""
        key: str = self._generate_state_key(module=self._module, optimizer=self._optimizer)
        return key

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look at the length of the run before StochasticWeightAveraging lengthens it by an epoch."""
        if stage == "fit":
            limit = trainer.max_epochs
            self._max_epochs = None if limit is None or limit < 0 else limit

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the method, and go on where the checkpoint was saved."""
        state = self.state_dict()
        self._detach()
        try:
            model = pl_module.get_submodule(self._module)
        except AttributeError as error:
            raise ValueError(f"module={self._module!r} is no submodule of the LightningModule: {error}") from error
        if self._optimizer >= len(trainer.optimizers):
            raise ValueError(
                f"optimizer={self._optimizer} is not there: configure_optimizers returned {len(trainer.optimizers)}"
            )
        self._method = self._make(trainer, model, trainer.optimizers[self._optimizer])
        self._saved = None
        if state and trainer.global_step > 0:
            self._load(self._method, state)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take away hooks; the method can still be looked at."""
        self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take away hooks."""
        self._detach()

    def state_dict(self) -> dict[str, Any]:
        """The method's state; before training that of the checkpoint, if there is one."""
        if self._method is not None and self._saved is None:
            return self._method.state_dict()
        return dict(self._saved or {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep it until training starts."""
        self._saved = state_dict

    def _make(self, trainer: Trainer, model: nn.Module, optimizer: Optimizer) -> Kind:
        raise NotImplementedError

    def _load(self, method: Kind, state: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def _detach(self) -> None:
        """Take away the method's hooks, where it has any."""

    def __repr__(self) -> str:
        made = "before training" if self._method is None else repr(self._method)
        return f"<{type(self).__name__}: {made}>"

    def _tell(self, pl_module: LightningModule, report: Report, on_epoch: bool) -> None:
        numbers = {f"{self._prefix}/{name}": float(value) for name, value in report.scalars().items()}
        pl_module.log_dict(numbers, on_step=not on_epoch, on_epoch=on_epoch, batch_size=1)

    def _made(self) -> Kind:
        if self._method is None:
            raise RuntimeError(f"{type(self).__name__} makes its method when training starts; call trainer.fit first")
        return self._method


class EvolutionCallback(MethodCallback[PeriodicEvolution]):
    """`WeightEvolution` between epochs.

        Trainer(max_epochs=90, callbacks=[EvolutionCallback()]).fit(module, datamodule)

    It evolves when the first batch of the next epoch is about to be trained on. Validation, checkpoints (with
    ``save_on_train_epoch_end=True``, too) and loggers of an epoch so see the network that was trained and measured, and
    after the last epoch nothing is evolved. A run that is resumed, at the end of an epoch or within it, evolves when
    one that never stopped does.

    Args:
        every_n_epochs: evolve after every n-th epoch.
        every_n_train_steps: instead: after every n-th step of the optimizer. Steps this frequent cost accuracy unless
            ``norm_shift_rate`` is "inferior" or 0. The schedule and ``epochs`` then count steps.
        module: name of the submodule to evolve; the whole LightningModule when left out.
        optimizer: number of the optimizer that trains it among those of ``configure_optimizers``.
        log: log rates, thresholds and numbers of inferior filters, by ``log_dict``.
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
        every_n_train_steps: int | None = None,
        module: str = "",
        optimizer: int = 0,
        log: bool = True,
        strict: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(module, optimizer, options)
        self._every, self._by_steps = period(every_n_epochs, every_n_train_steps, "every_n_train_steps")
        self._log, self._strict = check_flag(log, "log"), check_flag(strict, "strict")

    @property
    def evolution(self) -> WeightEvolution:
        """The evolution; made when training starts."""
        return self._made().evolution

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Evolve before the first batch after a period."""
        report = self._made().step(self._done(trainer))
        if report is not None and self._log:
            self._tell(pl_module, report, on_epoch=True)

    def _make(self, trainer: Trainer, model: nn.Module, optimizer: Optimizer) -> PeriodicEvolution:
        total = _steps_of(trainer) if self._by_steps else self._max_epochs
        done = self._done(trainer)
        return PeriodicEvolution(model, optimizer, total=total, every=self._every, done=done, options=self._options)

    def _done(self, trainer: Trainer) -> int:
        return int(trainer.global_step if self._by_steps else trainer.current_epoch)

    def _load(self, method: PeriodicEvolution, state: Mapping[str, Any]) -> None:
        method.load_state_dict(state, strict=self._strict)


class ReactivationCallback(MethodCallback[UnitReactivation]):
    """`UnitReactivation` after each step of the optimizer; batches that only accumulate gradients are none.

    Args:
        module: name of the submodule whose units may start anew; the whole LightningModule when left out. Give it where
            the LightningModule has no ``forward`` that PyTorch can trace.
        optimizer: number of the optimizer that trains it among those of ``configure_optimizers``.
        log: log how many units started anew, at the steps that act, by ``log_dict``.
        strict: refuse to resume with other options than the checkpoint's.
        options: of `UnitReactivation`.

    Raises:
        TypeError, ValueError: name the argument; those of options come when training starts.
    """

    _prefix = "reactivation"

    def __init__(
        self, *, module: str = "", optimizer: int = 0, log: bool = True, strict: bool = True, **options: Any
    ) -> None:
        super().__init__(module, optimizer, options)
        self._log, self._strict = check_flag(log, "log"), check_flag(strict, "strict")
        self._step = 0

    @property
    def reactivation(self) -> UnitReactivation:
        """The reactivation; made when training starts."""
        return self._made()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a step of the optimizer; at every n-th, units start anew."""
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        report = self.reactivation.step()
        if report is not None and self._log:
            self._tell(pl_module, report, on_epoch=False)

    def _make(self, trainer: Trainer, model: nn.Module, optimizer: Optimizer) -> UnitReactivation:
        self._step = trainer.global_step
        return UnitReactivation(model, optimizer, **self._options)

    def _load(self, method: UnitReactivation, state: Mapping[str, Any]) -> None:
        method.load_state_dict(state, strict=self._strict)

    def _detach(self) -> None:
        if self._method is not None:
            self._method.detach()


class LowRankCallback(MethodCallback[LowRankProjection]):
    """`LowRankProjection` at the end of each epoch, before its validation: what is validated and saved is projected.

    After ``trainer.fit``, ``callback.projection.compact()`` is the compact network. Ranks by ``budget`` are chosen
    at the first projection. Averages of weights (EMA, SWA) are of higher rank than what they are averages of.

    Args:
        every_n_train_steps: also project within epochs, after every n-th step of the optimizer.
        module: name of the submodule to project; the whole LightningModule when left out.
        optimizer: number of the optimizer that trains it among those of ``configure_optimizers``.
        log: log the energy kept, by ``log_dict``.
        options: of `LowRankProjection`.

    Raises:
        TypeError, ValueError: name the argument; those of options come when training starts.
    """

    _prefix = "low_rank"

    def __init__(
        self,
        *,
        every_n_train_steps: int | None = None,
        module: str = "",
        optimizer: int = 0,
        log: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(module, optimizer, options)
        self._every = unless_none(every_n_train_steps, "every_n_train_steps", check_count, 1)
        self._log = check_flag(log, "log")
        self._step = 0

    @property
    def projection(self) -> LowRankProjection:
        """The projection; made when training starts."""
        return self._made()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Project after the last batch of an epoch, and every so many steps if asked for."""
        if trainer.is_last_batch or (self._every is not None and trainer.global_step % self._every == 0):
            self._project(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Project what was trained since, where an epoch ended before its last batch."""
        self._project(trainer, pl_module)

    def _project(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if self.projection.steps == 0 and self._options.get("budget") is not None:
            model = pl_module.get_submodule(self._module)
            self._method = self._make(trainer, model, trainer.optimizers[self._optimizer])
        report = self.projection.step()
        if self._log:
            self._tell(pl_module, report, on_epoch=True)

    def _make(self, trainer: Trainer, model: nn.Module, optimizer: Optimizer) -> LowRankProjection:
        self._step = trainer.global_step
        return LowRankProjection(model, **{"optimizer": optimizer, **self._options})

    def _load(self, method: LowRankProjection, state: Mapping[str, Any]) -> None:
        method.load_state_dict(state)


class AsynchronousCallback(MethodCallback[AsynchronousUpdate]):
    """`AsynchronousUpdate` of the optimizer: of each of its steps a random part of the filters keeps what it did.

    Args:
        module: name of the submodule; the whole LightningModule when left out.
        optimizer: number of the optimizer among those of ``configure_optimizers``.
        options: of `AsynchronousUpdate`.

    Raises:
        TypeError, ValueError: name the argument; those of options come when training starts.
    """

    def __init__(self, *, module: str = "", optimizer: int = 0, **options: Any) -> None:
        super().__init__(module, optimizer, options)

    @property
    def update(self) -> AsynchronousUpdate:
        """The update; made when training starts."""
        return self._made()

    def _make(self, trainer: Trainer, model: nn.Module, optimizer: Optimizer) -> AsynchronousUpdate:
        return AsynchronousUpdate(optimizer, model, **self._options)

    def _load(self, method: AsynchronousUpdate, state: Mapping[str, Any]) -> None:
        method.load_state_dict(state)

    def _detach(self) -> None:
        if self._method is not None:
            self._method.detach()


def _steps_of(trainer: Trainer) -> int | None:
    """Steps of the optimizer in the whole run; None: not known."""
    steps = trainer.estimated_stepping_batches
    return None if steps == float("inf") else int(steps)
