"""The callbacks in Lightning's Trainer: when they act, and what a checkpoint makes of it."""

import logging

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from tests.integrations.networks import OPTIONS, batch, network, same, weights
from weight_evolution import StagedSigmoid

pytest.importorskip("lightning")
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision

from weight_evolution.integrations.lightning import (
    AsynchronousCallback,
    EvolutionCallback,
    LowRankCallback,
    ReactivationCallback,
)

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:.*(num_workers|logging interval|not resumable|used to create the checkpoint):UserWarning"
    ),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]
BATCHES, EPOCHS = 2, 3
ACTING = {
    "evolution": lambda: EvolutionCallback(module="net", **OPTIONS),
    "evolution by steps": lambda: EvolutionCallback(module="net", every_n_train_steps=2, **OPTIONS),
    "reactivation": lambda: ReactivationCallback(module="net", every=2, batches=1, replacement_rate=0.4, maturity=0),
    "low rank": lambda: LowRankCallback(module="net", prune_ratio=0.5),
    "asynchronous": lambda: AsynchronousCallback(module="net", rate=0.5),
}


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Images(Dataset):
    """The same batch, as often as wanted: a resumed epoch needs no order of the data."""

    def __init__(self):
        self.images, self.labels = batch()

    def __len__(self):
        return BATCHES * len(self.images)

    def __getitem__(self, place):
        return self.images[place % len(self.images)], self.labels[place % len(self.images)]


class Module(LightningModule):
    """Its network under ``net``; keeps what was validated."""

    def __init__(self):
        super().__init__()
        self.net = network()
        self.validated = []

    def forward(self, images):
        return self.net(images)

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, _):
        self.log("loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def on_validation_epoch_start(self):
        self.validated.append(weights(self))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def trainer(*callbacks, folder=None, **options):
    given = {"accelerator": "cpu", "max_epochs": EPOCHS, "num_sanity_val_steps": 1, "logger": False, **options}
    return Trainer(
        devices=1,
        callbacks=list(callbacks),
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(each, ModelCheckpoint) for each in callbacks),
        **given,
    )


def fit(*callbacks, checkpoint=None, **options):
    """The module after a run; the callbacks keep what they did."""
    module = Module()
    images = DataLoader(Images(), batch_size=4)
    trainer(*callbacks, **options).fit(module, images, images, ckpt_path=checkpoint)
    return module


@pytest.mark.parametrize("acting", ACTING.values(), ids=list(ACTING))
@pytest.mark.parametrize(
    "saving",
    [
        {"save_on_train_epoch_end": False},
        {"save_on_train_epoch_end": True},
        {"every_n_train_steps": 1},
    ],
    ids=["after validation", "after the epoch", "each step"],
)
def test_a_resumed_run_is_one_that_never_stopped(acting, saving, tmp_path):
    whole = fit(acting(), ModelCheckpoint(tmp_path, "{epoch}-{step}", save_top_k=-1, **saving))
    assert not same(weights(whole), weights(fit()))
    checkpoints = sorted(tmp_path.iterdir())
    assert len(checkpoints) == (EPOCHS * BATCHES if "every_n_train_steps" in saving else EPOCHS)
    for checkpoint in checkpoints[:-1]:
        resumed = fit(acting(), checkpoint=checkpoint)
        assert same(weights(resumed), weights(whole)), checkpoint.name


@pytest.mark.parametrize("acting", ACTING.values(), ids=list(ACTING))
@pytest.mark.parametrize("late", [True, False])
def test_what_is_saved_was_validated(acting, late, tmp_path):
    saving = ModelCheckpoint(tmp_path, "{epoch}", monitor="loss", save_top_k=-1, save_on_train_epoch_end=late)
    module = fit(acting(), saving)
    saved = [torch.load(path, weights_only=False)["state_dict"] for path in sorted(tmp_path.iterdir())]
    assert len(saved) == EPOCHS
    for epoch, state in enumerate(saved):
        assert same(state, module.validated[1 + epoch]), epoch  # the first was the sanity check's
    assert same(weights(module), module.validated[-1])


def test_it_evolves_between_epochs_and_at_no_other_time():
    callback = EvolutionCallback(module="net", **OPTIONS)
    fit(callback)
    assert callback.evolution.steps == EPOCHS - 1
    assert callback.evolution.schedule == StagedSigmoid.cifar(epochs=EPOCHS)
    assert callback.evolution.epochs == EPOCHS
    assert same(
        fit(EvolutionCallback(module="net", **OPTIONS), max_epochs=1).state_dict(), fit(max_epochs=1).state_dict()
    )


@pytest.mark.parametrize(
    ("every", "options", "steps"),
    [
        ({"every_n_epochs": 2}, {"max_epochs": 5}, 2),
        ({"every_n_train_steps": 2}, {}, 2),
        ({"every_n_train_steps": 5}, {"max_epochs": -1, "max_steps": 11}, 2),
        ({}, {"max_epochs": -1, "max_steps": 5}, 2),
        ({}, {"val_check_interval": 1}, 2),
        ({}, {"accumulate_grad_batches": 2}, 2),
        ({"every_n_train_steps": 1}, {"accumulate_grad_batches": 2}, 2),
    ],
)
def test_how_often_it_evolves(every, options, steps):
    callback = EvolutionCallback(module="net", **every, **OPTIONS)
    fit(callback, **options)
    assert callback.evolution.steps == steps


class WithoutForward(Module):
    """As most modules are: nothing can be traced but the network in it."""

    def forward(self, *images):
        return LightningModule.forward(self, *images)


@pytest.mark.parametrize("kind", [Module, WithoutForward])
def test_the_whole_module_when_no_part_is_named(kind):
    callback, module, images = EvolutionCallback(**OPTIONS), kind(), DataLoader(Images(), batch_size=4)
    trainer(callback).fit(module, images, images)
    assert callback.evolution.steps == EPOCHS - 1
    assert next(iter(callback.evolution.preview().filters)) == "net.0.weight"


def test_repr_says_what_was_made():
    callback = EvolutionCallback(module="net", **OPTIONS)
    assert repr(callback) == "<EvolutionCallback: before training>"
    fit(callback)
    assert repr(callback) == f"<EvolutionCallback: {callback.evolution!r}>"


def test_another_run_starts_anew_and_the_same_goes_on():
    callback = EvolutionCallback(module="net", strict=False, **OPTIONS)
    first, second = fit(callback), fit(callback)
    assert callback.evolution.steps == EPOCHS - 1
    assert same(weights(first), weights(second))
    second.trainer.fit_loop.max_epochs = EPOCHS + 2
    images = DataLoader(Images(), batch_size=4)
    second.trainer.fit(second, images, images)
    assert callback.evolution.steps == EPOCHS + 1


def test_a_run_is_extended(tmp_path):
    fit(EvolutionCallback(module="net", **OPTIONS), ModelCheckpoint(tmp_path, "last"))
    longer = EvolutionCallback(module="net", strict=False, **OPTIONS)
    fit(longer, checkpoint=tmp_path / "last.ckpt", max_epochs=EPOCHS + 2)
    assert longer.evolution.steps == EPOCHS + 1


def test_a_callback_that_joins_late_does_not_make_up_for_the_past(tmp_path):
    fit(ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1))
    callback = EvolutionCallback(module="net", **OPTIONS)
    fit(callback, checkpoint=tmp_path / "step=3.ckpt")
    assert callback.evolution.steps == EPOCHS - 2


def test_scalars_are_logged(tmp_path):
    logger = CSVLogger(tmp_path)
    callbacks = [
        EvolutionCallback(module="net", **OPTIONS),
        ReactivationCallback(module="net", every=2, batches=1),
        LowRankCallback(module="net", prune_ratio=0.5),
    ]
    fit(*callbacks, logger=logger, log_every_n_steps=1)
    header, *rows = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    for name in ("evolution/conv/inferior", "evolution/norm_shift/rate", "reactivation/revived"):
        place = header.split(",").index(name)
        values = [row.split(",")[place] for row in rows if row.split(",")[place]]
        assert len(values) == (EPOCHS if name.startswith("reactivation") else EPOCHS - 1)
    assert "low_rank/energy_kept_least" in header
    assert "evolution" not in str(fit(EvolutionCallback(module="net", log=False, **OPTIONS)).trainer.callback_metrics)


@pytest.mark.parametrize("acting", ACTING.values(), ids=list(ACTING))
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "64-true"])
def test_precision_plugins(acting, precision):
    options = {"precision": precision}
    if precision == "16-mixed":
        options = {"plugins": [MixedPrecision(precision, "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**17))]}
    module = fit(acting(), **options)
    assert all(tensor.isfinite().all() for tensor in weights(module).values())
    assert not same(weights(module), weights(fit(**options)))


def test_an_average_of_weights_beside_it():
    callback = EvolutionCallback(module="net", **OPTIONS)
    module = fit(callback, EMAWeightAveraging(decay=0.5))
    assert callback.evolution.steps == EPOCHS - 1
    assert same(weights(module), module.validated[-1])


def test_stochastic_weight_averaging_takes_what_was_trained():
    averaging, callback = StochasticWeightAveraging(0.05, swa_epoch_start=2), EvolutionCallback(module="net", **OPTIONS)
    taken, update = [], averaging.update_parameters
    averaging.update_parameters = lambda average, model, *rest: (
        taken.append(weights(model)),
        update(average, model, *rest),
    )
    module = fit(callback, averaging)
    assert callback.evolution.steps == EPOCHS - 1
    assert callback.evolution.epochs == EPOCHS  # not the one that refreshes the BatchNorms
    assert len(taken) == EPOCHS - 1
    for number, state in enumerate(taken):
        assert same(state, module.validated[1 + number])


def test_compact_after_the_run():
    callback = LowRankCallback(module="net", budget=0.6, example_inputs=torch.zeros(1, 3, 8, 8))
    module = fit(callback)
    assert callback.projection.steps == EPOCHS
    images, _ = batch()
    compact = callback.projection.compact().eval()
    torch.testing.assert_close(compact(images), module.net.eval()(images), rtol=1e-3, atol=1e-4)
    assert sum(p.numel() for p in compact.parameters()) < sum(p.numel() for p in module.net.parameters())


def test_an_epoch_that_ends_early_is_projected():
    callback = LowRankCallback(module="net", prune_ratio=0.5)
    fit(callback, max_epochs=-1, max_steps=3)
    assert callback.projection.steps == 2
    callback = LowRankCallback(module="net", prune_ratio=0.5, every_n_train_steps=1)
    fit(callback, max_epochs=2)
    assert callback.projection.steps == 4


def test_accumulated_gradients_are_one_step():
    callback = ReactivationCallback(module="net", every=2, batches=1)
    fit(callback, accumulate_grad_batches=2)
    assert callback.reactivation.iterations == EPOCHS


@pytest.mark.parametrize(("acting", "hooks"), [("asynchronous", 0), ("reactivation", 0)])
def test_hooks_are_taken_away(acting, hooks):
    callback = ACTING[acting]()
    module = fit(callback, max_epochs=1)
    assert sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in module.modules()) == hooks
    assert not module.trainer.optimizers[0]._optimizer_step_pre_hooks


def test_several_callbacks_of_a_class():
    first = EvolutionCallback(module="net.0", conv_rate=0.5, local_ratio=0.9)
    second = EvolutionCallback(module="net.3", conv_rate=0.5, local_ratio=0.9)
    fit(first, second)
    assert first.state_key != second.state_key
    assert first.evolution.steps == second.evolution.steps == EPOCHS - 1


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: EvolutionCallback(every_n_epochs=0), ValueError, "every_n_epochs must be an integer from 1"),
        (lambda: EvolutionCallback(every_n_epochs=1, every_n_train_steps=5), ValueError, "one of every_n_epochs"),
        (lambda: EvolutionCallback(every_n_train_steps=2.5), TypeError, "every_n_train_steps must be an"),
        (lambda: EvolutionCallback(module=nn.Linear(1, 1)), TypeError, "module must be the name of a submodule"),
        (lambda: EvolutionCallback(optimizer=-1), ValueError, "optimizer must be an integer from 0"),
        (lambda: EvolutionCallback(log=1), TypeError, "log must be True or False"),
        (lambda: LowRankCallback(every_n_train_steps=0), ValueError, "every_n_train_steps must be an integer from 1"),
        (lambda: fit(EvolutionCallback(module="model")), ValueError, "module='model' is no submodule"),
        (lambda: fit(EvolutionCallback(optimizer=1)), ValueError, "optimizer=1 is not there.* returned 1"),
        (lambda: fit(EvolutionCallback(rate=0.1)), TypeError, "rate"),
        (lambda: EvolutionCallback().evolution, RuntimeError, "makes its method when training starts"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
