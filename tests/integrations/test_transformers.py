"""The callbacks in Hugging Face's Trainer: when they act, and what a checkpoint makes of it."""

import json
import os

os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

from tests.integrations.networks import OPTIONS, batch, same, weights
from weight_evolution import StagedSigmoid

pytest.importorskip("transformers")
pytest.importorskip("accelerate")
from transformers import ResNetConfig, ResNetForImageClassification, Trainer, TrainerCallback, TrainingArguments

from weight_evolution.integrations.transformers import (
    AsynchronousCallback,
    EvolutionCallback,
    LowRankCallback,
    ReactivationCallback,
)

STEPS, EPOCHS = 2, 3
LOW_RANK = {"prune_ratio": 0.5, "example_inputs": torch.zeros(1, 3, 8, 8)}
ACTING = {
    "evolution": lambda: EvolutionCallback(**OPTIONS),
    "evolution by steps": lambda: EvolutionCallback(every_n_steps=2, **OPTIONS),
    "reactivation": lambda: ReactivationCallback(
        every=2, batches=2, replacement_rate=0.4, maturity=0, example_inputs=torch.zeros(1, 3, 8, 8)
    ),
    "low rank": lambda: LowRankCallback(**LOW_RANK),
    "low rank by steps": lambda: LowRankCallback(every_n_steps=1, **LOW_RANK),
    "asynchronous": lambda: AsynchronousCallback(rate=0.5),
}


class Images(Dataset):
    """Different ones: of a batch of one image BatchNorm leaves nothing to learn."""

    def __init__(self):
        self.images, self.labels = batch(STEPS * 4)

    def __len__(self):
        return STEPS * 4

    def __getitem__(self, place):
        return {"pixel_values": self.images[place], "labels": self.labels[place]}


class Watch(TrainerCallback):
    """Keeps what was evaluated, and at which step."""

    def __init__(self):
        self.evaluated = {}

    def on_evaluate(self, args, state, control, model, **others):
        self.evaluated[state.global_step] = weights(model)


def network():
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", num_labels=2)
    return ResNetForImageClassification(config)


def trainer(folder, *callbacks, **options):
    given = {"use_cpu": True, "save_strategy": "epoch", "num_train_epochs": EPOCHS, **options}
    args = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        learning_rate=0.01,
        lr_scheduler_type="constant",
        logging_strategy="epoch",
        eval_strategy="epoch",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **given,
    )
    return Trainer(network(), args, train_dataset=Images(), eval_dataset=Images(), callbacks=list(callbacks))


def fit(folder, *callbacks, checkpoint=None, **options):
    """The Trainer after a run; the callbacks keep what they did."""
    runner = trainer(folder, *callbacks, **options)
    runner.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return runner


def test_repr_says_what_was_made(tmp_path):
    callback = EvolutionCallback()
    assert repr(callback) == "<EvolutionCallback: before training>"
    fit(tmp_path, callback)
    assert repr(callback) == f"<EvolutionCallback: {callback.evolution!r}>"


@pytest.mark.parametrize("acting", ACTING.values(), ids=list(ACTING))
@pytest.mark.parametrize("restore", [False, True], ids=["kept", "made again by the Trainer"])
def test_a_resumed_run_is_one_that_never_stopped(acting, restore, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1}
    whole = fit(tmp_path / "whole", acting(), **options)
    assert not same(weights(whole.model), weights(fit(tmp_path / "plain").model))
    for step in range(1, STEPS * EPOCHS):
        if restore and not isinstance(acting(), (EvolutionCallback, AsynchronousCallback)):
            break  # example_inputs is no JSON
        checkpoint = tmp_path / "whole" / f"checkpoint-{step}"
        resumed = fit(
            tmp_path / "other",
            acting(),
            checkpoint=checkpoint,
            restore_callback_states_from_checkpoint=restore,
            **options,
        )
        if isinstance(acting(), LowRankCallback):  # projects from new bases
            assert_close(weights(resumed.model), weights(whole.model))
        else:
            assert same(weights(resumed.model), weights(whole.model)), step


def assert_close(found, wanted):
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("acting", ACTING.values(), ids=list(ACTING))
def test_what_is_saved_was_evaluated(acting, tmp_path):
    watch = Watch()
    runner = fit(tmp_path, watch, acting())
    assert list(watch.evaluated) == [STEPS, 2 * STEPS, 3 * STEPS]
    for step, state in watch.evaluated.items():
        saved = ResNetForImageClassification.from_pretrained(tmp_path / f"checkpoint-{step}")
        assert same(weights(saved), state)
    assert same(weights(runner.model), watch.evaluated[STEPS * EPOCHS])


def test_it_evolves_between_epochs_and_at_no_other_time(tmp_path):
    callback = EvolutionCallback(**OPTIONS)
    runner = fit(tmp_path, callback)
    assert callback.evolution.steps == EPOCHS - 1
    assert callback.evolution.schedule == StagedSigmoid.cifar(epochs=EPOCHS)
    assert callback.evolution.epochs == EPOCHS
    rows = [row for row in runner.state.log_history if "evolution/conv/inferior" in row]
    assert [row["step"] for row in rows] == [STEPS, 2 * STEPS]


@pytest.mark.parametrize(
    ("every", "options", "steps"),
    [
        ({"every_n_epochs": 2}, {}, 1),
        ({"every_n_steps": 2}, {}, 2),
        ({}, {"max_steps": 5}, 2),
        ({}, {"gradient_accumulation_steps": 2}, 2),
        ({"every_n_steps": 1}, {"gradient_accumulation_steps": 2}, 2),
    ],
)
def test_how_often_it_evolves(every, options, steps, tmp_path):
    callback = EvolutionCallback(**every, **OPTIONS)
    fit(tmp_path, callback, **options)
    assert callback.evolution.steps == steps


class Stream(IterableDataset):
    """Images of which the Trainer does not know how many there are."""

    def __iter__(self):
        images = Images()
        return (images[place] for place in range(len(images)))


def test_a_dataset_without_a_length(tmp_path):
    callback = EvolutionCallback(**OPTIONS)
    runner = trainer(tmp_path, callback, max_steps=STEPS * 3)
    runner.train_dataset = Stream()
    runner.train()
    assert callback.evolution.steps == 2
    assert callback.evolution.epochs is None
    rows = [row for row in runner.state.log_history if "evolution/conv/inferior" in row]
    assert [row["step"] for row in rows] == [STEPS, 2 * STEPS]


def test_an_epoch_that_is_stopped(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **others):
            control.should_epoch_stop = True

    callback = EvolutionCallback(**OPTIONS)
    runner = fit(tmp_path, callback, Stop())
    rows = [row for row in runner.state.log_history if "evolution/conv/inferior" in row]
    assert [row["step"] for row in rows] == [1, 2]


def test_another_run_starts_anew(tmp_path):
    callback = EvolutionCallback(**OPTIONS)
    runner = trainer(tmp_path, callback)
    runner.train()
    runner.train()
    assert callback.evolution.steps == EPOCHS - 1


def test_numbers_go_to_every_logger(tmp_path):
    told = []

    class Logger(TrainerCallback):
        def on_log(self, args, state, control, logs, **others):
            told.append(logs)

    callback = EvolutionCallback(**OPTIONS)
    runner = trainer(tmp_path, Logger(), callback)
    callback.log = runner.log
    runner.train()
    assert sum("evolution/conv/inferior" in logs for logs in told) == EPOCHS - 1


def test_the_checkpoint_of_a_run_without_the_callback(tmp_path):
    fit(tmp_path / "plain", save_strategy="steps", save_steps=3)
    callback = EvolutionCallback(**OPTIONS)
    fit(tmp_path / "other", callback, checkpoint=tmp_path / "plain" / "checkpoint-3")
    assert callback.evolution.steps == EPOCHS - 2  # not for what was before
    entry = json.loads((tmp_path / "other" / "checkpoint-6" / "trainer_state.json").read_text())
    assert entry["stateful_callbacks"]["EvolutionCallback"]["attributes"]["saved"]["done"] == EPOCHS - 1


def test_other_options_than_the_checkpoint(tmp_path):
    fit(tmp_path, EvolutionCallback(**OPTIONS))
    with pytest.raises(ValueError, match=r"saved with conv_rate=0\.5, this WeightEvolution has 0\.1.*strict=False"):
        fit(tmp_path, EvolutionCallback(**{**OPTIONS, "conv_rate": 0.1}), checkpoint=tmp_path / "checkpoint-2")
    callback = EvolutionCallback(strict=False, **{**OPTIONS, "conv_rate": 0.1})
    fit(tmp_path, callback, checkpoint=tmp_path / "checkpoint-2", num_train_epochs=EPOCHS + 1)
    assert callback.evolution.steps == EPOCHS


def test_arguments_that_the_trainer_cannot_keep(tmp_path):
    schedule = StagedSigmoid.imagenet(epochs=EPOCHS)
    fit(tmp_path, EvolutionCallback(schedule=schedule, **OPTIONS))
    options = {"checkpoint": tmp_path / "checkpoint-2", "restore_callback_states_from_checkpoint": True}
    with pytest.raises(ValueError, match="saved with schedule="):
        fit(tmp_path, EvolutionCallback(schedule=schedule, **OPTIONS), **options)


def test_two_of_a_class_are_refused(tmp_path):
    class Second(EvolutionCallback):
        pass

    parts = [{"include": ["resnet.embedder"]}, {"include": ["resnet.encoder"]}]
    with pytest.raises(ValueError, match="has 2 callbacks of a class named EvolutionCallback"):
        fit(tmp_path, *(EvolutionCallback(**OPTIONS, **part) for part in parts))
    callbacks = [kind(**OPTIONS, **part) for kind, part in zip((EvolutionCallback, Second), parts, strict=True)]
    fit(tmp_path, *callbacks)
    assert [each.evolution.steps for each in callbacks] == [EPOCHS - 1] * 2


@pytest.mark.parametrize("method", ["reactivation", "asynchronous"])
def test_hooks_are_taken_away(method, tmp_path):
    runner = fit(tmp_path, ACTING[method](), num_train_epochs=1)
    assert not runner.optimizer.optimizer._optimizer_step_post_hooks
    assert not any(module._forward_hooks for module in runner.model.modules())


def test_each_epoch_is_projected_once_before_it_is_evaluated(tmp_path):
    class Ranks(TrainerCallback):
        seen = ()

        def on_evaluate(self, args, state, control, model, **others):
            weight = next(x for x in model.parameters() if x.dim() == 4 and x.shape[0] == x.shape[1])
            self.seen += (int(torch.linalg.matrix_rank(weight.detach().flatten(1), rtol=1e-4)),)

    callback, ranks = LowRankCallback(**LOW_RANK), Ranks()
    runner = fit(tmp_path, callback, ranks)
    assert callback.projection.steps == EPOCHS
    assert ranks.seen == (4,) * EPOCHS
    rows = [row for row in runner.state.log_history if any(name.startswith("low_rank/") for name in row)]
    assert [row["step"] for row in rows] == [STEPS, 2 * STEPS, 3 * STEPS]


def test_ranks_by_budget_are_of_the_trained_weights(tmp_path):
    callback = LowRankCallback(budget=0.6, example_inputs=torch.zeros(1, 3, 8, 8))
    runner = fit(tmp_path, callback)
    assert callback.projection.steps == EPOCHS
    assert callback.projection.compact()(torch.zeros(1, 3, 8, 8)).logits.shape == (1, 2)
    assert runner.state.log_history


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: EvolutionCallback(every_n_epochs=0), ValueError, "every_n_epochs must be an integer from 1"),
        (lambda: EvolutionCallback(every_n_epochs=1, every_n_steps=5), ValueError, "one of every_n_epochs"),
        (lambda: EvolutionCallback(every_n_steps=2.5), TypeError, "every_n_steps must be an"),
        (lambda: EvolutionCallback(strict=1), TypeError, "strict must be True or False"),
        (lambda: LowRankCallback(every_n_steps=0), ValueError, "every_n_steps must be an integer from 1"),
        (lambda: LowRankCallback().projection, RuntimeError, "makes its method when training starts"),
        (lambda: EvolutionCallback().evolution, RuntimeError, "makes its method when training starts"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_units_are_found_in_mixed_precision(tmp_path):
    """accelerate puts forward under autocast before the callback sees the model."""
    callback = ACTING["reactivation"]()
    fit(tmp_path, callback, bf16=True)
    assert callback.reactivation.steps == EPOCHS
